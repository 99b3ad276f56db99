"""``rlstride inspect`` says what a path is, and what is wrong with it, by its exit status too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from foreign_runs import stored_tensors, tiny_model
from planted_run import SmallRun
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.trajectory.inspect import inspect

GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def base(small_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_base, tmp_path / "base")


def test_a_sound_model_has_its_format_dtype_shapes_and_number_of_parameters(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(base)]) == 0
    said = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in stored_tensors(base).values())
    assert "Hugging Face folder (safetensors)" in said
    assert f"{len(stored_tensors(base))} tensors, {count:,} parameters ({count:,} in float32)" in said
    assert "  2 x model.layers.*.mlp.up_proj.weight 24 x 16" in said
    assert "problem" not in said


def test_each_dtype_is_counted(base: Path) -> None:
    tensors = stored_tensors(base)
    tensors[GATE] = tensors[GATE].bfloat16()
    save_file(tensors, base / "model.safetensors")
    assert any("384 in bfloat16" in fact for fact in inspect(str(base)).facts)


def test_a_trajectory_is_described_with_its_steps(small_run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(small_run.path)]) == 0
    said = capsys.readouterr().out
    assert "trajectory, format 3: planted, seed 0" in said
    assert "steps: 2, 4, 6, 8, 10, 12, 14, 16, 18, 20" in said
    assert "step 12: Hugging Face folder (safetensors); " in said


def problems(path: Path, base: Path | None = None) -> list[str]:
    return inspect(str(path), str(base) if base else None).problems


def test_problems_are_told_and_the_exit_status_is_1(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()
    assert main(["inspect", str(base)]) == 1
    captured = capsys.readouterr()
    assert f"problem: {base}: there is no tokenizer" in captured.out
    assert captured.err == f"rlstride inspect: {base}: problems found: 1\n"


def test_nothing_known_is_exit_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "neither a trajectory, nor a checkpoint or a run of a kind that can be read" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_a_tensor_that_one_layer_lacks_is_missed(tmp_path: Path) -> None:
    model = tiny_model("qwen3", num_hidden_layers=4)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gone = ("lm_head.weight", GATE, "model.layers.3.")
    save_file({name: t for name, t in whole.items() if not name.startswith(gone)}, tmp_path / "model.safetensors")
    assert problems(tmp_path) == [
        f"{tmp_path}: there is no {name}" for name in (GATE, "model.layers.3", "lm_head.weight")
    ]


def test_a_layer_of_another_kind_lacks_nothing(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", num_hidden_layers=4, mlp_only_layers=[0])
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert problems(tmp_path) == []


def test_steps_of_a_run_are_compared_with_its_first_where_no_base_is_given(tmp_path: Path) -> None:
    for step, size in ((1, 24), (2, 24), (3, 20)):
        tiny_model("llama", intermediate_size=size).save_pretrained(tmp_path / f"step_{step}")
    found = problems(tmp_path)
    assert len(found) == 2 * 3  # gate, up and down of two layers
    assert found[0] == (
        f"{tmp_path / 'step_3'}: model.layers.0.mlp.down_proj.weight: its shape is (16, 20), but step 1's is (16, 24)"
    )


def test_a_half_written_or_absent_shard_is_named(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="15KB")
    (tmp_path / "tokenizer.json").write_text("{}")
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    found = problems(tmp_path)
    assert len(found) == 2
    assert found[0].startswith(f"{first}: not a whole safetensors file")
    assert found[1] == f"{second}: this file is named in the index but missing"


def test_a_step_that_is_not_the_bases_is_told_tensor_by_tensor(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    file = run.trajectory.model_folder(12) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors | {GATE: torch.ones(24, 15)}, file, metadata={"format": "pt"})
    (run.trajectory.model_folder(4) / "model.safetensors").unlink()
    found = problems(run.path)
    assert len(found) == 4
    assert found[0].endswith("step_000004/model.safetensors: in the trajectory's manifest, but missing")
    assert "step_000012/model.safetensors: changed since the manifest was written" in found[1]
    assert f"{GATE}: its shape is (24, 15), but the base's is (24, 16)" in found[2]
    assert "there is no tensor 'model.norm.weight', which the base has" in found[3]


def test_a_run_is_described_step_by_step(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    (run.path / "manifest.json").unlink()
    (run.path / "step_000022").mkdir()
    found = inspect(str(run.path), str(run.folder.parent / "base"))
    assert found.facts[0] == "run of 11 steps: 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22"
    assert found.problems == [f"{run.path / 'step_000022'}: there is no checkpoint in it"]


def test_an_adapter_has_its_rank_and_is_checked_against_a_base(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    found = inspect(str(tmp_path / "a"))
    assert found.facts[0] == "PEFT LoRA adapter"
    assert found.facts[1] == f"4 tensors, {2 * 3 * (16 + 16)} parameters; r = 3, alpha = 5"
    assert found.problems == []
    assert problems(tmp_path / "a", base) == []
    tiny_model("phi3").save_pretrained(tmp_path / "other")
    assert "has no tensor 'model.layers.0.self_attn.q_proj.weight'" in problems(tmp_path / "a", tmp_path / "other")[0]


def test_what_is_known_but_cannot_be_read_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "pickled weights are not read" in capsys.readouterr().out


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"base": 3}))
    with pytest.raises(RequestError, match="damaged manifest"):
        inspect(str(tmp_path))

"""Runs that train an adapter: what is kept of them, what reads it, and that they go on after an interruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AdaLoraConfig, C3AConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_training import digests, study_file, train
from transformers import AutoModelForCausalLM

from foreign_runs import tiny_model
from rlstride.cli import main
from rlstride.config.section import digest
from rlstride.config.training import Training
from rlstride.errors import RequestError
from rlstride.spectra.updates import UpdateReader
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder
from rlstride.training import callbacks as harvest
from rlstride.training.adapters import hold_rank_numbers, peft_config, rising_ranks
from rlstride.training.launch import cell_settings
from rlstride.trajectory.manifest import read_manifest
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources.c3a import circulant_rows, open_adapter
from rlstride.trajectory.store import Trajectory

__all__ = ["study_file"]  # the fixture
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4, "alpha": 2},
    "prilora": {"kind": "prilora", "rank": 4, "alpha": 2},
    "adalora": {"kind": "adalora", "rank": 2, "alpha": 4},
    "c3a": {"kind": "c3a", "block_size": 8},
}
ALGORITHMS = {"lora": "grpo", "prilora": "rloo", "adalora": "reinforce_pp", "c3a": "grpo"}


def with_adapter(study_file: Path, root: Path, adapter: dict[str, Any]) -> Path:
    """The study of a few steps, with an adapter in place of full weights, over the same base."""
    plain = yaml.safe_load(study_file.read_text())
    plain["training"] |= {"adapter": adapter}
    for algorithm in plain["define"]["algorithms"].values():
        algorithm["learning_rate"] *= 20
    file = root / "study.yaml"
    file.write_text(yaml.safe_dump(plain))
    return file


@pytest.fixture(scope="module")
def runs(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of 10 steps with an adapter of a kind, every second one kept; trained when first asked for."""
    found: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in found:
            root = tmp_path_factory.mktemp(kind)
            train(with_adapter(study_file, root, KINDS[kind]), f"random/{ALGORITHMS[kind]}/0", root / "trajectory")
            found[kind] = root / "trajectory"
        return found[kind]

    return run


def test_a_study_without_an_adapter_is_hashed_as_before_there_were_any(default_study_file: str) -> None:
    study = load_study(default_study_file)
    assert {str(cell): digest(cell_settings(study, cell)) for cell in [*study.cells, *study.control_cells]} == {
        "tiny-qwen3/grpo/0": "8414cc1c5d59",
        "tiny-qwen3/rloo/0": "50c82c5129eb",
        "tiny-llama/grpo/0": "6c307392ed89",
        "tiny-llama/rloo/0": "0f00950b111d",
        "tiny-qwen3/frozen/0": "6775e9ac6d51",
        "tiny-llama/frozen/0": "034e3139a30b",
    }
    training = study.spec.training.model_dump(mode="json")
    assert "adapter" not in training
    adapted = Training.model_validate(training | {"adapter": KINDS["lora"]})
    assert adapted.model_dump(mode="json")["adapter"] == {"kind": "lora", "rank": 4, "alpha": 2.0}


def test_ranks_rise_from_half_to_one_and_a_half_of_the_mean() -> None:
    assert rising_ranks(8, 5) == [4, 6, 8, 10, 12]  # PRILoRA's own 4 to 12
    assert rising_ranks(1, 3) == [1, 1, 2]
    assert rising_ranks(8, 1) == [8]


def test_an_adapters_rank_rises_with_depth_and_alpha_with_it(small_base: Path) -> None:
    training = Training.model_validate({"steps": 1, "adapter": {"kind": "prilora", "rank": 4, "alpha": 2}})
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(small_base), peft_config(small_base, training, updates=1)
    )
    layers = [layer.mlp.up_proj for layer in model.base_model.model.model.layers]
    assert [module.r["default"] for module in layers] == [2, 6]
    assert [module.scaling["default"] for module in layers] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"kind": "lora", "rank": 64}, r"rank 64 is above what model\.layers\.0\..* can have; choose one up to 8"),
        ({"kind": "c3a", "block_size": 5}, r"block_size 5 does not divide both sides of model\.layers\.0"),
    ],
)
def test_an_adapter_that_does_not_fit_the_base_is_refused(
    small_base: Path, adapter: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        peft_config(small_base, Training.model_validate({"steps": 1, "adapter": adapter}), updates=1)


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"kind": "dora"}, "training.adapter.kind: 'dora' is none of"),
        ({"kind": "adalora", "rank": 4, "initial_rank": 4}, "initial_rank 4 leaves nothing to shrink to rank 4"),
        ({"kind": "c3a", "rank": 4}, "training.adapter.rank: unknown key"),
    ],
)
def test_a_mistake_in_the_adapter_is_told_in_one_sentence(
    study_file: Path, tmp_path: Path, adapter: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        load_study(with_adapter(study_file, tmp_path, adapter))


def test_a_study_of_adapters_has_no_teacher_of_its_own(study_file: Path, tmp_path: Path) -> None:
    file = with_adapter(study_file, tmp_path, KINDS["lora"])
    study = yaml.safe_load(file.read_text())
    study["define"]["algorithms"]["dist"]["teacher"] = "grpo"
    file.write_text(yaml.safe_dump(study))
    with pytest.raises(RequestError, match="dist: teacher: 'grpo' trains an adapter, no whole model"):
        load_study(file)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_step_is_an_adapter_that_is_read_as_peft_merges_it(runs: Callable[[str], Path], kind: str) -> None:
    trajectory = Trajectory(runs(kind))
    assert trajectory.steps == [2, 4, 6, 8, 10]
    folder = trajectory.model_folder(10)
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "step.json",
    ]
    assert (trajectory.record(10).kind, trajectory.record(10).dtype) == ("adapter", "float32")
    base = AutoModelForCausalLM.from_pretrained(trajectory.base_folder, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    reader = UpdateReader(trajectory)
    for weight in reader.weights:
        torch.testing.assert_close(reader.stored(weight, 10), merged[weight.name], rtol=0, atol=1e-6)
        moved = bool(reader.update(weight, 10).any())
        # AdaLoRA may mask every triplet of a matrix.
        assert moved == weight.in_scope or (kind == "adalora" and not moved), weight.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_with_the_same_kept_steps(
    runs: Callable[[str], Path], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    study, cell, out = with_adapter(study_file, tmp_path, KINDS[kind]), f"random/{ALGORITHMS[kind]}/0", tmp_path / "run"
    keep = harvest.TrajectoryWriter.keep

    def failing(self: harvest.TrajectoryWriter, step: int, model: Any) -> Any:
        if step == 8:
            raise KeyboardInterrupt
        return keep(self, step, model)

    with monkeypatch.context() as broken:
        broken.setattr(harvest.TrajectoryWriter, "keep", failing)
        with pytest.raises(KeyboardInterrupt):
            train(study, cell, out)
    train(study, cell, out)
    ledger = [json.loads(line) for line in (tmp_path / "ledger" / "train.jsonl").read_text().splitlines()]
    assert ledger[-1]["resumed_from"] == 6
    assert digests(out) == digests(runs(kind))
    assert len({tuple(step.items()) for step in digests(out).values()}) == 5, "the run never moved the weights"


@pytest.mark.slow
def test_adalora_ends_with_the_ranks_that_it_may_keep(runs: Callable[[str], Path]) -> None:
    """Of 7 matrices with 3 triplets each, 14 are left at the end, and on the way as many as the cubic schedule says.

    Of 40 updates the first 4 are warm-up and the last 8 change no rank; after update 7 (from 0), the last of step 2,
    14 + 7 (1 - (7 - 4) / (40 - 8 - 4))^3 = 18.98 are left, rounded down.
    """
    folder = runs("adalora")
    left = {}
    for step in (2, 10):
        tensors = load_file(folder / f"step_{step:06d}" / "adapter_model.safetensors")
        left[step] = sum(int((tensor != 0).sum()) for name, tensor in tensors.items() if "lora_E" in name)
    assert left == {2: 18, 10: 14}


@pytest.mark.slow
def test_every_verb_takes_a_run_of_adapters_as_any_other(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run, folder = str(runs("lora")), tmp_path / "models"
    assert main(["spectra", run, "--out", str(tmp_path / "spectra.parquet"), "--rank", "4"]) == 0
    assert main(["ablate", run, "--step", "last", "--rank", "1", "--out", str(folder / "rank_1")]) == 0
    assert main(["extrapolate", run, "--method", "linear", "--window", "0.4", "--out", str(folder / "linear")]) == 0
    base, linear = (
        load_file(base_of(runs("lora")) / "model.safetensors"),
        load_file(folder / "linear/model.safetensors"),
    )
    reader = UpdateReader(Trajectory(runs("lora")))
    for weight in reader.in_scope:
        expected = 10 / 4 * reader.update(weight, 4)
        torch.testing.assert_close(linear[weight.name] - base[weight.name], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_kept_steps_folder_is_scored_over_its_trajectorys_base(
    runs: Callable[[str], Path], study_file: Path, tmp_path: Path
) -> None:
    run, out = runs("lora"), tmp_path / "accuracy.parquet"
    models = [f"base@0={base_of(run)}", f"full@10={run / 'step_000010'}"]
    flags = ["--study", str(study_file), "--split", "validation", "--out", str(out)]
    assert main(["evaluate", *models, *flags]) == 0
    import pandas as pd

    table = pd.read_parquet(out)
    assert set(zip(table.variant, table.step, strict=True)) == {("base", 0), ("full", 10)}


def base_of(run: Path) -> Path:
    return run / read_manifest(run).base.path


# ---- what PEFT itself saves


def moved(root: Path, config: Any) -> tuple[Path, PeftModel]:
    """An adapter over a tiny qwen3, whose every trained weight was moved."""
    tiny_model("qwen3").save_pretrained(root / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return root / "base", model


@pytest.mark.parametrize(
    "config",
    [
        AdaLoraConfig(target_modules=["q_proj", "down_proj"], init_r=4, lora_alpha=6, total_step=10),
        C3AConfig(target_modules=["q_proj", "down_proj"], block_size=4),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_an_adapter_that_peft_saved_is_read_as_peft_merges_it(tmp_path: Path, config: Any) -> None:
    base, model = moved(tmp_path, config)
    model.save_pretrained(tmp_path / "adapter")
    start = ModelFolder(base).tensors
    source = open_adapter(tmp_path / "adapter", start)
    merged = model.merge_and_unload().state_dict()
    changed = 0
    for name in source.names():
        torch.testing.assert_close(source.tensor(name), merged[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(source.rows(name, 1, 5), merged[name][1:5], rtol=0, atol=1e-6)
        changed += not torch.equal(source.tensor(name), start.tensor(name))
    assert changed == 4


def test_adalora_with_fewer_ranks_keeps_the_scaling_of_its_start(tmp_path: Path) -> None:
    """PEFT leaves masked triplets out of the file: of q_proj's 4 two are left, of down_proj's none."""
    base, model = moved(tmp_path, AdaLoraConfig(target_modules=["q_proj", "down_proj"], init_r=4, total_step=10))
    keep = {"q_proj": [True, False, True, False], "down_proj": [False] * 4}
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    pattern = {name: next(mask for kind, mask in keep.items() if kind in name) for name in names}
    model.base_model.rankallocator.mask_using_rank_pattern(model.base_model.model, pattern)
    model.peft_config["default"].rank_pattern = pattern
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload().state_dict()
    source = open_adapter(tmp_path / "adapter", ModelFolder(base).tensors)
    for name in source.names():
        torch.testing.assert_close(source.tensor(name), merged[name], rtol=0, atol=1e-6)
    factors = source.factors("model.layers.0.self_attn.q_proj.weight")  # type: ignore[attr-defined]
    assert factors[0].shape[1] == 2
    assert source.factors("model.layers.0.mlp.down_proj.weight") is None  # type: ignore[attr-defined]


def test_a_circulant_block_turns_its_kernel_by_one_place_in_each_row() -> None:
    kernel = torch.tensor([[[1.0, 2.0, 3.0]]])
    expected = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]]) / 3
    torch.testing.assert_close(circulant_rows(kernel, 0, 3), expected)
    torch.testing.assert_close(circulant_rows(kernel, 1, 2), expected[1:2])


def test_the_number_of_ranks_is_not_trained_where_the_adapter_was_cast_or_moved(study_file: Path) -> None:
    base = base_folder(load_study(study_file), "random")
    # PEFT casts what it has made, as it would move it to a GPU.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = AdaLoraConfig(target_modules=["q_proj"], init_r=3, target_r=2, total_step=10, tinit=1, tfinal=2)
    adapted = get_peft_model(model, config)
    numbers = [parameter for name, parameter in adapted.named_parameters() if ".ranknum." in name]
    assert [number.requires_grad for number in numbers] == [True], "PEFT holds it itself now: hold_rank_numbers can go"
    hold_rank_numbers(adapted)
    assert [number.requires_grad for number in numbers] == [False]
    trained = {name.split(".")[-2] for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {"lora_A", "lora_B", "lora_E"}

"""A run trained elsewhere becomes a trajectory where it lies, however its checkpoints are stored."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from foreign_runs import Sharding, cached_revisions, moved, save_sharded, stored_tensors, tiny_model
from rlstride.atomic_files import sha256
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.trajectory.ingest import ingest
from rlstride.trajectory.manifest import FORMAT_VERSION, read_manifest
from rlstride.trajectory.steps import step_of
from rlstride.trajectory.store import Trajectory

pytestmark = pytest.mark.slow  # two processes start before the first test

STEPS = (10, 20)
FAMILIES = ("glm4", "qwen3_moe", "mixtral")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each of ``FAMILIES``: its base, its steps as Hugging Face folders, and sharded.

    ``verl`` and ``dcp`` hold the same steps as ``hf``, as verl and torch.distributed.checkpoint lay them out.
    """
    root = tmp_path_factory.mktemp("foreign")
    shardings = []
    for family in FAMILIES:
        model = tiny_model(family, tie_word_embeddings=True)
        model.save_pretrained(root / family / "base")
        for step in STEPS:
            saved = root / family / "hf" / f"checkpoint-{step}"
            moved(model, step).save_pretrained(saved)
            shardings.append(Sharding(saved, root / family / "verl" / f"global_step_{step}" / "actor", "verl"))
            shardings.append(Sharding(saved, root / family / "dcp" / f"step_{step}", "dcp-nested"))
    save_sharded(shardings, root / "rendezvous")
    return root


def run(root: Path, tmp_path: Path, family: str = "glm4", kind: str = "hf") -> Path:
    """An ingested trajectory of a run."""
    out = tmp_path / f"{family}-{kind}"
    arguments = ["ingest", str(root / family / kind), "--base", str(root / family / "base"), "--out", str(out)]
    assert main(arguments) == 0
    return out


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("global_step_50", 50),
        ("global_step50", 50),
        ("checkpoint-100", 100),
        ("step_7", 7),
        ("step_000007", 7),
        ("iter_0000010", 10),
        ("global_step20_hf", 20),
        ("run-3-step-20", 20),
        ("Step12", 12),
        ("actor", None),
        ("seed0", None),
        ("qwen3-8", None),
        ("laststep_3b", None),
    ],
)
def test_a_step_is_read_from_the_name_that_a_trainer_gives_it(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["verl", "dcp"])
def test_spectra_do_not_depend_on_how_a_run_is_stored(root: Path, tmp_path: Path, family: str, kind: str) -> None:
    tables = []
    for stored in ("hf", kind):
        out = tmp_path / f"{stored}.parquet"
        assert main(["spectra", str(run(root, tmp_path, family, stored)), "--rank", "4", "--out", str(out)]) == 0
        tables.append(pd.read_parquet(out))
    pd.testing.assert_frame_equal(*tables)
    experts = "experts.2." if family != "glm4" else ""
    kinds = tables[0].query("in_scope").groupby("kind")["module"].count()
    assert {"gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"} <= set(kinds.index)
    assert f"model.layers.1.mlp.{experts}up_proj" in set(tables[0]["module"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["hf", "verl"])
def test_an_edited_model_is_stored_as_its_family_stores_it(root: Path, tmp_path: Path, family: str, kind: str) -> None:
    trajectory = run(root, tmp_path, family, kind)
    out = tmp_path / "models"
    assert main(["ablate", str(trajectory), "--variants", "rank_1,in_scope_full", "--out", str(out)]) == 0
    base, last = stored_tensors(root / family / "base"), stored_tensors(root / family / "hf" / "checkpoint-20")
    full, edited = stored_tensors(out / "in_scope_full"), stored_tensors(out / "rank_1")
    assert full.keys() == edited.keys() == base.keys()
    for name, tensor in full.items():
        in_scope = ".layers." in name and tensor.ndim == 2
        assert torch.equal(tensor, (last if in_scope else base)[name])
    AutoModelForCausalLM.from_pretrained(out / "rank_1")
    if family == "glm4":  # two matrices, each of them edited by its own rank-1 update
        name = "model.layers.0.mlp.gate_up_proj.weight"
        update = edited[name] - base[name]  # (2 * 24, 16)
        ranks = [int(torch.linalg.matrix_rank(part, atol=1e-5)) for part in (update[:24], update[24:], update)]
        assert ranks == [1, 1, 2]


def test_the_manifest_points_at_the_files_and_has_their_digests(root: Path, tmp_path: Path) -> None:
    out = run(root, tmp_path, kind="verl")
    assert sorted(file.name for file in out.iterdir()) == [".architecture.json", ".verified.json", "manifest.json"]
    manifest = read_manifest(out)
    assert (manifest.format_version, manifest.base.name) == (FORMAT_VERSION, "base")
    assert [(record.step, record.kind, record.dtype) for record in manifest.steps] == [
        (10, "fsdp", "float32"),
        (20, "fsdp", "float32"),
    ]
    for record in manifest.steps:
        assert sorted(record.sha256) == [f"model_world_size_2_rank_{rank}.pt" for rank in range(2)]
        for name, digest in record.sha256.items():
            assert sha256(out / record.folder / name) == digest


def test_a_checkpoint_of_another_dtype_than_the_bases_is_compared_in_float32(root: Path, tmp_path: Path) -> None:
    saved, base = root / "glm4" / "hf" / "checkpoint-20", root / "glm4" / "base"
    rounded = {name: tensor.bfloat16() for name, tensor in stored_tensors(saved).items()}
    shutil.copytree(saved, tmp_path / "run" / "step_20")
    save_file(rounded, tmp_path / "run" / "step_20" / "model.safetensors")
    record = ingest([str(tmp_path / "run")], str(base), tmp_path / "t").steps[0]
    assert record.dtype == "bfloat16"
    assert main(["spectra", str(tmp_path / "t"), "--out", str(tmp_path / "s.parquet")]) == 0
    row = pd.read_parquet(tmp_path / "s.parquet").set_index("module").loc["model.norm"]
    D = rounded["model.norm.weight"].double() - stored_tensors(base)["model.norm.weight"].double()
    assert row["dtype"] == "bfloat16"
    assert row["frobenius"] == pytest.approx(float(D.norm()), rel=1e-6)


def test_a_run_moves_with_its_manifest(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "glm4", tmp_path / "a" / "glm4")
    run(tmp_path / "a", tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert Trajectory(tmp_path / "b" / "glm4-hf").source(20).names()


@pytest.mark.parametrize("inside", ["", "actor"])
def test_single_checkpoints_may_be_named_in_any_order(root: Path, tmp_path: Path, inside: str) -> None:
    sources = [str(root / "glm4" / "verl" / f"global_step_{step}" / inside) for step in (20, 10)]
    manifest = ingest(sources, str(root / "glm4" / "base"), tmp_path / "t")
    assert [record.step for record in manifest.steps] == [10, 20]


def test_steps_may_be_given_where_names_have_none(root: Path, tmp_path: Path) -> None:
    base = str(root / "glm4" / "base")
    for step, name in zip(STEPS, ("early", "late"), strict=True):
        shutil.copytree(root / "glm4" / "hf" / f"checkpoint-{step}", tmp_path / name)
    sources = [str(tmp_path / name) for name in ("early", "late")]
    with pytest.raises(RequestError, match="early: no step number in its name; give the numbers with --steps"):
        ingest(sources, base, tmp_path / "t")
    with pytest.raises(RequestError, match="--steps: 1 numbers for 2 checkpoints"):
        ingest(sources, base, tmp_path / "t", steps=[3])
    with pytest.raises(RequestError, match="late: both are step 3"):
        ingest(sources, base, tmp_path / "t", steps=[3, 3])
    with pytest.raises(RequestError, match="early: step 0: steps start at 1"):
        ingest(sources, base, tmp_path / "t", steps=[0, 3])
    arguments = ["ingest", *sources, "--base", base, "--steps", "3,7", "--algorithm", "dapo", "--seed", "5"]
    assert main([*arguments, "--out", str(tmp_path / "t")]) == 0
    manifest = read_manifest(tmp_path / "t")
    assert [record.step for record in manifest.steps] == [3, 7]
    assert (manifest.algorithm, manifest.seed) == ("dapo", 5)


def test_adapters_are_steps_over_their_base(root: Path, tmp_path: Path) -> None:
    base = root / "glm4" / "base"
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["gate_up_proj", "q_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for step in STEPS:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(tmp_path / "run" / f"global_step_{step}" / "actor" / "lora_adapter")
    out = tmp_path / "s.parquet"
    assert main(["ingest", str(tmp_path / "run"), "--base", str(base), "--out", str(tmp_path / "t")]) == 0
    assert main(["spectra", str(tmp_path / "t"), "--rank", "full", "--out", str(out)]) == 0
    frame = pd.read_parquet(out).query("in_scope and step == 20").set_index("module")
    moved_modules = frame.index[frame["frobenius"] > 0]
    assert {name.rsplit(".", 1)[-1] for name in moved_modules} == {"gate_proj", "up_proj", "q_proj"}
    assert (frame.loc[moved_modules, "sigma_3"] < 1e-5 * frame.loc[moved_modules, "sigma_1"]).all()  # rank 2
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    D = 2 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()  # alpha / r = 2
    q = frame.loc["model.layers.0.self_attn.q_proj"]
    expected = torch.linalg.svdvals(D).tolist()
    assert [q["sigma_1"], q["sigma_2"], q["sigma_3"]] == pytest.approx([*expected[:2], 0], rel=1e-6)
    assert q["frobenius"] == pytest.approx(float(D.detach().norm()), rel=1e-6)
    assert q["residual_1"] < 1e-6 * q["sigma_1"]
    merged = model.merge_and_unload().state_dict()
    fused = merged["model.layers.0.mlp.gate_up_proj.weight"]
    source = Trajectory(tmp_path / "t").source(20)
    torch.testing.assert_close(source.tensor("model.layers.0.mlp.up_proj.weight"), fused[24:], rtol=0, atol=1e-6)


def test_an_adapters_update_below_the_bases_rounding_is_measured_from_its_factors(root: Path, tmp_path: Path) -> None:
    base = root / "glm4" / "base"
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.full_like(parameter, 1e-6)  # every entry of B A is 1e-12
    model.save_pretrained(tmp_path / "checkpoint-10")
    assert main(["ingest", str(tmp_path / "checkpoint-10"), "--base", str(base), "--out", str(tmp_path / "t")]) == 0
    assert main(["spectra", str(tmp_path / "t"), "--out", str(tmp_path / "s.parquet")]) == 0
    rows = pd.read_parquet(tmp_path / "s.parquet").query("kind == 'q_proj'")
    assert rows["sigma_1"].to_numpy() == pytest.approx(1e-12 * (rows["rows"] * rows["cols"]) ** 0.5, rel=1e-5)
    assert rows["share_1"].to_numpy() == pytest.approx(1, rel=1e-5)
    assert rows["max_abs"].to_numpy() == pytest.approx(1e-12, rel=1e-5)


def test_a_branch_for_each_step_is_a_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {f"step_{step}": root / "glm4" / "hf" / f"checkpoint-{step}" for step in STEPS}
    cached_revisions(tmp_path / "hub", "org/run", folders | {"main": root / "glm4" / "base"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    manifest = ingest(["hf://org/run@step_{n}"], "hf://org/run@main", tmp_path / "t")
    assert [(record.step, record.origin) for record in manifest.steps] == [
        (10, "hf://org/run@step_10"),
        (20, "hf://org/run@step_20"),
    ]
    assert (manifest.base.name, manifest.base.origin) == ("org/run", "hf://org/run@main")
    step, stored = Trajectory(tmp_path / "t").source(20), stored_tensors(folders["step_20"])
    assert torch.equal(step.tensor("model.norm.weight"), stored["model.norm.weight"])
    again = ingest(["hf://org/run@step_20"], "hf://org/run@main", tmp_path / "part")
    assert [record.step for record in again.steps] == [20]


def refusal(source: Path, base: Path, tmp_path: Path) -> str:
    with pytest.raises(RequestError) as error:
        ingest([str(source)], str(base), tmp_path / "t")
    assert not (tmp_path / "t").exists()
    return str(error.value)


def test_what_is_not_from_this_base_names_the_tensor(root: Path, tmp_path: Path) -> None:
    other = tiny_model("glm4", intermediate_size=20)
    other.save_pretrained(tmp_path / "narrow" / "step_1")
    said = refusal(tmp_path / "narrow", root / "glm4" / "base", tmp_path)
    assert "down_proj.weight: its shape is (16, 20), but the base's is (16, 24)" in said
    said = refusal(root / "qwen3_moe" / "verl", root / "glm4" / "base", tmp_path)
    assert said.startswith("step 10: ")
    assert "there is no tensor 'model.layers.0.mlp.down_proj.weight', which the base has" in said


def test_a_tensor_that_the_base_lacks_is_left_out_and_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = shutil.copytree(root / "glm4" / "hf" / "checkpoint-10", tmp_path / "step_1")
    save_file(stored_tensors(step) | {"v_head.weight": torch.ones(1, 16)}, step / "model.safetensors")
    ingest([str(step)], str(root / "glm4" / "base"), tmp_path / "t")
    assert "step_1: 1 tensors are none of the model's and are left out: v_head.weight" in capsys.readouterr().err


def test_a_step_without_a_whole_checkpoint_is_named(root: Path, tmp_path: Path) -> None:
    base = root / "glm4" / "base"
    copied = shutil.copytree(root / "glm4" / "dcp", tmp_path / "dcp")
    (copied / "step_20" / "__1_0.distcp").unlink()
    assert "step_20/__1_0.distcp: the metadata names this file, but it is missing" in refusal(copied, base, tmp_path)
    shutil.rmtree(copied / "step_20")
    (copied / "step_20").mkdir()
    assert "step_20: named after a step, but there is no checkpoint in it" in refusal(copied, base, tmp_path)
    assert "nowhere: there is no such folder" in refusal(tmp_path / "nowhere", base, tmp_path)
    assert "no checkpoint here" in refusal(tmp_path, base, tmp_path)
    assert "no config.json here; the base is" in refusal(copied, tmp_path, tmp_path)


def test_a_quantised_base_is_refused(root: Path, tmp_path: Path) -> None:
    """Some have the shapes of the weights that they stand for."""
    base = shutil.copytree(root / "glm4" / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    assert "base/config.json: this model is quantised" in refusal(root / "glm4" / "hf", base, tmp_path)


def test_the_same_run_is_ingested_again_and_another_one_only_with_force(root: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "t", str(root / "glm4" / "base")
    steps = [str(root / "glm4" / "hf" / f"checkpoint-{step}") for step in STEPS]
    whole = ingest(steps, base, out)
    written = (out / "manifest.json").read_bytes(), (out / "manifest.json").stat().st_mtime_ns
    assert ingest(steps, base, out) == whole
    shifted = shutil.copytree(root / "glm4" / "hf" / "checkpoint-20", tmp_path / "elsewhere" / "checkpoint-20")
    others = ((steps[:1], {}), (steps, {"seed": 1}), ([steps[0], str(shifted)], {}))
    for sources, flags in others:
        with pytest.raises(RequestError, match="another run's manifest is here; name another --out, or replace it"):
            ingest(sources, base, out, **flags)
    assert ((out / "manifest.json").read_bytes(), (out / "manifest.json").stat().st_mtime_ns) == written
    assert [record.step for record in ingest(steps[:1], base, out, force=True).steps] == [10]
    assert len(read_manifest(out).steps) == 1


def test_what_a_killed_ingest_left_is_written_over(root: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / ".manifest.json.partial").write_text("{")
    ingest([str(root / "glm4" / "hf")], str(root / "glm4" / "base"), tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        ".architecture.json",
        ".verified.json",
        "manifest.json",
    ]


def test_a_folder_of_something_else_is_not_written_into(root: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.tex").write_text("years of work")
    with pytest.raises(RequestError, match="holds something other than an ingested run's manifest"):
        ingest([str(root / "glm4" / "hf")], str(root / "glm4" / "base"), tmp_path / "t")


def test_a_manifest_of_the_first_format_is_read_as_hugging_face_folders(root: Path, tmp_path: Path) -> None:
    out = run(root, tmp_path)
    manifest = json.loads((out / "manifest.json").read_text()) | {"format_version": 1}
    for record in [manifest["base"], *manifest["steps"]]:
        for key in ("kind", "origin"):
            record.pop(key, None)
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert Trajectory(out).source(20).names() == Trajectory(out).source(0).names()


def test_a_kind_from_a_later_version_is_named(root: Path, tmp_path: Path) -> None:
    out = run(root, tmp_path)
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"kind": "hf"', '"kind": "crystal"'))
    with pytest.raises(RequestError, match="step 20: this rlstride reads no checkpoints of the kind 'crystal'"):
        Trajectory(out).source(20)

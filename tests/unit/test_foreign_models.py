"""Steps that are no Hugging Face folders are scored, edited and extrapolated like those that are."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from foreign_runs import FAMILIES, stored_tensors, tiny_model
from owner_runs import ADAPTER, BASE, DCP, HF, STEPS, TRL, VERL
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.trajectory.filling import fill
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.store import Trajectory

pytestmark = pytest.mark.slow  # two processes and a trainer write the runs

TASK = Path("tasks/sums.yaml")
SAME_STEPS = (VERL, DCP)  # as HF
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def trajectories(owned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Each run's trajectory."""
    root = tmp_path_factory.mktemp("ingested")
    found = {run: root / run.name / "trajectory" for run in (HF, VERL, DCP, TRL, ADAPTER)}
    for run, out in found.items():
        assert main(["ingest", str(owned / run), "--base", str(owned / BASE), "--out", str(out)]) == 0
    return found


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model.eval()(input_ids=torch.arange(12)[None]).logits  # (1, 12, vocabulary)
    return found


@pytest.mark.parametrize("run", SAME_STEPS, ids=str)
def test_a_sharded_step_computes_what_its_hugging_face_folder_computes(
    run: Path, owned: Path, trajectories: dict[Path, Path]
) -> None:
    """In float32, as the shards are; the base, which is in bfloat16, stays what it is."""
    bench = Bench("cpu")
    candidates = parse_models([str(trajectories[run])])
    assert [(each.variant, each.step) for each in candidates] == [("base", 0), *(("checkpoint", t) for t in STEPS)]
    for candidate in candidates[::3]:
        folder = owned / (HF / f"step_{candidate.step}" if candidate.step else BASE)
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        seated = bench.load(candidate).model
        assert seated.dtype == expected.dtype == (torch.float32 if candidate.step else torch.bfloat16)
        assert torch.equal(logits(seated), logits(expected))


def test_an_adapter_computes_what_peft_computes(owned: Path, trajectories: dict[Path, Path]) -> None:
    bench = Bench("cpu")
    for candidate in parse_models([str(trajectories[ADAPTER])], steps=[2, 6]):
        base = AutoModelForCausalLM.from_pretrained(owned / BASE, dtype=torch.float32)
        expected = logits(base).clone()
        adapted = PeftModel.from_pretrained(base, owned / ADAPTER / f"checkpoint-{candidate.step}")
        assert not torch.allclose(logits(adapted), expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(logits(bench.load(candidate).model), logits(adapted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_put_into_a_model_that_fuses_its_matrices(family: str, tmp_path: Path) -> None:
    tiny_model(family, seed=1).save_pretrained(tmp_path)
    model, step = tiny_model(family, seed=2), ModelFolder(tmp_path)
    fill(model, step.source, step.layout)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("run", [VERL, ADAPTER], ids=str)
def test_the_verb_scores_a_trajectory_of_any_kind(
    run: Path, owned: Path, trajectories: dict[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "accuracy.parquet"
    assert main(["evaluate", str(trajectories[run]), "--tasks", str(owned / TASK), "--out", str(out)]) == 0
    table = pd.read_parquet(out)
    steps = Trajectory(trajectories[run]).steps
    assert table[["variant", "step"]].values.tolist() == [["base", 0], *(["checkpoint", step] for step in steps)]
    assert set(table.split) == {"test"}


def test_some_steps_of_a_trajectory_can_be_scored_beside_other_models(
    owned: Path, trajectories: dict[Path, Path]
) -> None:
    words = [str(trajectories[VERL]), f"mine@7={owned / BASE}"]
    found = [(each.variant, each.step) for each in parse_models(words, steps=[0, 60])]
    assert found == [("base", 0), ("checkpoint", 60), ("mine", 7)]
    with pytest.raises(RequestError, match=r"step 61 was not kept; kept: 10, 20, 30, 40, 50, 60"):
        parse_models(words, steps=[61])


@pytest.mark.parametrize("folder", [VERL, VERL / "global_step_10", DCP / "step_10", ADAPTER / "checkpoint-2"], ids=str)
def test_weights_without_a_model_are_scored_as_a_trajectory_and_the_sentence_says_how(
    folder: Path, owned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "accuracy.parquet"
    assert main(["evaluate", str(owned / folder), "--tasks", str(owned / TASK), "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"rlstride evaluate: {owned / folder}: neither a model folder (no config.json) nor")
    assert "rlstride ingest" in said


def test_a_shard_that_went_missing_is_named(owned: Path, tmp_path: Path) -> None:
    step = shutil.copytree(owned / VERL / "global_step_10", tmp_path / "global_step_10")
    assert main(["ingest", str(step), "--base", str(owned / BASE), "--out", str(tmp_path / "t")]) == 0
    (step / "actor" / "model_world_size_2_rank_1.pt").unlink()
    (candidate,) = parse_models([str(tmp_path / "t")], steps=[10])
    with pytest.raises(RequestError, match=r"model_world_size_2_rank_1\.pt: in the trajectory's manifest, but missing"):
        candidate.weights_digest()


def test_accuracy_on_any_lm_eval_task_serves_the_methods_that_need_it(
    owned: Path, trajectories: dict[Path, Path], tmp_path: Path
) -> None:
    for split, status in (("test", 2), ("validation", 0)):
        evaluations = str(tmp_path / f"{split}.parquet")
        scored = [str(trajectories[VERL]), "--tasks", str(owned / TASK), "--split", split, "--out", evaluations]
        assert main(["evaluate", *scored]) == 0
        wanted = ["--method", "alpharl", "--window", "0.5", "--evaluations", evaluations, "--decoding", "task"]
        assert main(["extrapolate", str(trajectories[VERL]), *wanted, "--out", str(tmp_path / "model")]) == status
    assert opened(tmp_path / "model").dtype == torch.float32


def opened(folder: Path) -> PreTrainedModel:
    """The model as transformers opens it by default, which must agree with its files."""
    AutoTokenizer.from_pretrained(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for name, tensor in stored_tensors(folder).items():
        assert torch.equal(model.state_dict()[name], tensor.to(model.dtype))
    return model


VERBS = {
    "ablate": ["ablate", "--rank", "1"],
    "ablate all ranks": ["ablate", "--variants", "in_scope_full"],
    "extrapolate": ["extrapolate", "--method", "linear", "--window", "0.5"],
}


def write(trajectory: Path, verb: str, out: Path) -> Path:
    """The folder of the model that a verb writes."""
    assert main([VERBS[verb][0], str(trajectory), *VERBS[verb][1:], "--out", str(out)]) == 0
    return out / "in_scope_full" if "--variants" in VERBS[verb] else out


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_made_from_sharded_steps_is_that_made_from_hugging_face_folders(
    verb: str, trajectories: dict[Path, Path], tmp_path: Path
) -> None:
    """Bit for bit, and no narrower than the shards: float32, although the base is in bfloat16."""
    expected: Mapping[str, Tensor] = stored_tensors(write(trajectories[HF], verb, tmp_path / "hf"))
    for run in SAME_STEPS:
        folder = write(trajectories[run], verb, tmp_path / run.name)
        assert opened(folder).dtype == torch.float32
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
        found = stored_tensors(folder)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("run", [VERL, ADAPTER], ids=str)
def test_a_rank_one_model_of_a_bfloat16_base_has_an_update_of_rank_one(
    run: Path, trajectories: dict[Path, Path], tmp_path: Path
) -> None:
    """Written in bfloat16 it would have not: rounding adds directions of its own."""
    written = stored_tensors(write(trajectories[run], "ablate", tmp_path / "model"))[Q]
    base = Trajectory(trajectories[run]).source(0).tensor(Q)
    assert (base.dtype, written.dtype) == (torch.bfloat16, torch.float32)
    s = torch.linalg.svdvals(written.double() - base.double())
    assert s[0] > 0.1
    assert s[1] < 1e-5 * s[0]


def test_a_run_in_bfloat16_is_edited_in_float32(trajectories: dict[Path, Path], tmp_path: Path) -> None:
    folder = write(trajectories[TRL], "ablate", tmp_path / "model")
    dtypes = {name: tensor.dtype for name, tensor in stored_tensors(folder).items()}
    assert dtypes[Q] == torch.float32
    assert dtypes["model.norm.weight"] == torch.bfloat16  # not edited: bit for bit the base's
    assert opened(folder).dtype == torch.float32

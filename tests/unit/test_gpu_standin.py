"""With `device: cuda`, on a GPU that is not there (gpu_standin.py), every verb does what it does on the CPU.

This shows that all tensors are where they should be. A real one's numbers are test_smoke_algorithms.py's.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_adapters import ALGORITHMS, KINDS, with_adapter
from test_jumps import with_jumps
from test_recipes import write_model
from test_training import digests, kill_in_training, study_file, train
from torch.nn.attention import SDPBackend, sdpa_kernel

import gpu_standin
from rlstride.cli import main
from rlstride.trajectory.store import Trajectory
from warm_start import CODE, warm_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ builds what torch loads"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has its own CUDA"),
]
__all__ = ["study_file"]  # the fixture
FULL = ["grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "dapo", "gspo", "strides", "frozen", "sft", "dist"]
JUMPS = ["stop", "relex", "on"]
SHORT = set(FULL) - {"grpo", "strides"}  # the one is measured, the other killed
RUNS = [*FULL, *KINDS, *JUMPS]
EDITS = "in_scope_full,rank_1,rank_1_random,rank_10pct,single_2"
RUN = "import gpu_standin; gpu_standin.run()"
METHODS = "last,linear_validated,first_update_validated,alpharl,relex,logits_validated"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    paths = os.pathsep.join([str(Path(gpu_standin.__file__).parent), os.environ.get("PYTHONPATH", "")])
    quiet = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": paths}
    return {**os.environ, **quiet, **gpu_standin.environment(tmp_path_factory.mktemp("library"))}


@pytest.fixture(scope="module")
def command(environment: dict[str, str]) -> list[str]:
    """What runs verbs on the stand-in, as standard input has them (:func:`gpu_standin.run`)."""
    read_early = {name: environment[name] for name in ("LD_PRELOAD", "HF_DEACTIVATE_ASYNC_LOAD", "PYTHONPATH")}
    return [str(warm_programs("gpu", first="gpu_standin", **read_early) / CODE), RUN]


def study_of(run: str, study_file: Path, root: Path) -> tuple[Path, list[str]]:
    """The study in which a run is made, and its cell's and jump's flags."""
    root.mkdir(parents=True, exist_ok=True)
    if run in KINDS:
        return with_adapter(study_file, root, KINDS[run]), ["--cell", f"random/{ALGORITHMS[run]}/0"]
    if run in JUMPS:
        return with_jumps(study_file, root), ["--cell", "random/grpo/0", "--jump", run]
    if run in SHORT:
        study = yaml.safe_load(study_file.read_text())
        study["training"]["steps"] = 4
        (root / "short.yaml").write_text(yaml.safe_dump(study))
        return root / "short.yaml", ["--cell", f"random/{run}/0"]
    return study_file, ["--cell", f"random/{run}/0"]


def on_cuda(study: Path, root: Path) -> Path:
    file = root / "on-cuda.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"device": "cuda"}))
    return file


def measuring(trajectory: Path, study: Path, device: str, out: Path) -> list[list[str]]:
    """Every verb that has a device, on one run."""
    scored = ["--study", study, "--device", device]
    validation = out / "validation.parquet"
    first_part = ["--method", METHODS, "--window", 0.6, "--evaluations", validation, "--where-applicable"]
    verbs = [
        ["evaluate", trajectory, *scored, "--split", "validation", "--out", validation],
        ["evaluate", trajectory, *scored, "--variants", EDITS, "--out", out / "edits.parquet"],
        ["drift", trajectory, *scored, "--variants", EDITS, "--problems", 16, "--out", out / "drift.parquet"],
        ["spectra", trajectory, "--device", device, "--out", out / "spectra.parquet"],
        ["extrapolate", trajectory, *scored, *first_part, "--out", out / "models"],
        ["evaluate", out / "models/window_0.6_logits_validated", *scored, "--out", out / "predicted.parquet"],
    ]
    return [[str(word) for word in verb] for verb in verbs]


def run_on_standin(
    command: list[str], verbs: list[list[str]], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=json.dumps(verbs), env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def gpu(
    study_file: Path, command: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of all runs, made and measured on the stand-in in one process."""
    root = tmp_path_factory.mktemp("gpu")
    verbs = []
    for run in RUNS:
        study, which = study_of(run, study_file, root / run)
        out = str(root / run / "trajectory")
        verbs.append(["train", "--study", str(on_cuda(study, root / run)), *which, "--out", out])
    study = on_cuda(with_jumps(study_file, root), root)  # with few problems to score
    verbs += measuring(root / "grpo/trajectory", study, "cuda", root)
    run_on_standin(command, verbs, environment)
    return root


@pytest.mark.parametrize("run", RUNS)
def test_a_run_on_cuda_samples_the_same_and_ends_with_the_same_weights(
    gpu: Path, study_file: Path, tmp_path: Path, run: str
) -> None:
    study, which = study_of(run, study_file, tmp_path)
    with sdpa_kernel(SDPBackend.MATH):  # the stand-in has no other
        train(study, which[1], tmp_path / "trajectory", jump=which[3] if len(which) > 2 else None)
    there, here = (Trajectory(root / "trajectory") for root in (gpu / run, tmp_path))
    assert there.steps == here.steps
    # What rounding makes of a sample that is on the edge is no difference of devices: up to there they must agree.
    sampled = zip(there.manifest.training, here.manifest.training, strict=True)
    apart = (a.step for a, b in sampled if (a.reward, a.tokens) != (b.reward, b.tokens))
    same = [step for step in here.steps if step < next(apart, here.full_last_step + 1)]
    assert same, "they differ before the first kept step"
    weights, expected = (weights_of(trajectory, same[-1]) for trajectory in (there, here))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.dist(weights[name], tensor) <= 1e-3 * tensor.norm(), name


def weights_of(run: Trajectory, step: int) -> dict[str, torch.Tensor]:
    files = [file for file in run.files(step) if file.suffix == ".safetensors"]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("run", ["strides", "adalora"])  # with state of their own in a checkpoint
def test_a_killed_run_on_cuda_ends_with_the_weights_of_an_uninterrupted_one(
    gpu: Path, command: list[str], environment: dict[str, str], study_file: Path, tmp_path: Path, run: str
) -> None:
    _, which = study_of(run, study_file, tmp_path)
    out = tmp_path / "trajectory"
    verb = ["train", "--study", str(gpu / run / "on-cuda.yaml"), *which, "--out", str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps([verb]))
    process.stdin.close()
    kill_in_training(process, out)

    done = run_on_standin(command, [verb], environment)
    assert "resumes from step" in done.stdout
    assert digests(out) == digests(gpu / run / "trajectory")


def test_every_verb_measures_on_cuda_what_it_measures_on_the_cpu(gpu: Path, study_file: Path, tmp_path: Path) -> None:
    verbs = measuring(gpu / "grpo/trajectory", with_jumps(study_file, tmp_path), "cpu", tmp_path)
    with sdpa_kernel(SDPBackend.MATH):
        assert [main(verb) for verb in verbs] == [0] * len(verbs)
    for name in ("validation", "edits", "drift", "spectra", "predicted"):
        found, expected = (pd.read_parquet(root / f"{name}.parquet") for root in (gpu, tmp_path))
        numbers = expected.select_dtypes("number").columns.drop("seconds", errors="ignore")
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found[numbers], expected[numbers], rtol=1e-4, atol=1e-6, err_msg=name)
    assert (gpu / "models").is_dir()


def test_the_stand_in_refuses_what_a_gpu_refuses(environment: dict[str, str]) -> None:
    code = """
import gpu_standin, torch
gpu_standin.plug_in()
from rlstride.spectra.svd import truncated_svd
host = torch.randn(600, 300, generator=torch.Generator().manual_seed(0))
there = host.to("cuda")
assert there.is_cuda and (there @ there.mT).is_cuda and not there.cpu().is_cuda
assert there[[0, 2]].is_cuda and there[torch.tensor([1])].is_cuda and (there * torch.tensor(2.0)).is_cuda
for wrong in (lambda: there @ host.mT, lambda: there + host, lambda: host[there[:, 0] > 0], lambda: there.numpy(),
              lambda: there.index_put_((torch.tensor([0]),), host[:1])):
    try:
        wrong()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit("a mistake went through")
for columns in (300, 200, 60):  # by Krylov, by Gram, by LAPACK
    found, expected = truncated_svd(there[:, :columns], 2), truncated_svd(host[:, :columns], 2)
    assert found.u.is_cuda and found.s.is_cuda and found.residuals.is_cuda
    torch.testing.assert_close(found.s.cpu(), expected.s, rtol=1e-4, atol=0)
print("as it should be", flush=True)
import os; os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)
    assert done.stdout == "as it should be\n", done.stderr[-2000:]


def test_exact_scores_on_cuda_are_those_of_the_cpu(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = write_model(tmp_path / "model", "0123456789+=")
    task = {"kind": "dataset", "source": str(tmp_path / "sums.jsonl"), "prompt": "{{ question }}"}
    study = {
        "name": "sums",
        "task": "sums",
        "models": ["mine"],
        "algorithms": ["grpo"],
        "controls": [],
        "training": {"steps": 2},
        "evaluation": {"scorer": "exact", "test_problems": 6},
        "define": {
            "tasks": {"sums": task | {"verifier": "verbatim", "max_completion_tokens": 4}},
            "models": {"mine": {"source": str(model)}},
            "algorithms": {"grpo": {"trainer": "grpo", "learning_rate": 1e-3}},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    found = []
    for device in ("cuda", "cpu"):
        out = tmp_path / f"{device}.parquet"
        flags = ["--study", str(tmp_path / "study.yaml"), "--device", device, "--out", str(out)]
        if device == "cuda":
            run_on_standin(command, [["evaluate", str(model), *flags]], environment)
        else:
            assert main(["evaluate", str(model), *flags]) == 0
        found.append(pd.read_parquet(out).set_index("decoding")[["n", "accuracy", "low", "high", "unlisted"]])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-7)
    assert 0 < found[1].loc["t1.0", "accuracy"] < 1

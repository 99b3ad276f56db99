"""A run launched as several processes (here: two or three, with gloo) is one run, of the study's own size."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_training import digests, study_file, train

import one_rank
from children import LONGEST_WAIT, Launched, launch
from rlstride.cli import main
from rlstride.trajectory.manifest import read_manifest
from warm_start import warm_programs

__all__ = ["study_file"]  # the fixture
pytestmark = pytest.mark.slow

ROLLOUTS = 16  # in a step of the study: 4 problems, 4 completions each
KEPT = [2, 4, 6, 8, 10]


def arguments(study: Path, cell: str, out: Path) -> list[str]:
    return ["train", "--study", str(study), "--cell", cell, "--out", str(out)]


def ledger_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out.parent / "ledger" / "train.jsonl").read_text().splitlines()]


def wait_for(folder: Path, run: Launched) -> None:
    deadline = time.monotonic() + LONGEST_WAIT
    while not folder.is_dir() and time.monotonic() < deadline:
        assert all(member.is_alive() for member in run.members), [log.read_text() for log in run.logs]
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted GRPO run of two processes under torchrun, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "trajectory"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*launcher, warm_programs() / "rlstride", *arguments(study_file, "random/grpo/0", out)]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return out, ended.stdout


def test_two_processes_share_the_rollouts_of_a_step(whole: tuple[Path, str]) -> None:
    out, printed = whole
    manifest = read_manifest(out)
    assert [record.step for record in manifest.steps] == KEPT
    assert [record.step for record in manifest.training] == list(range(1, 11))
    # A mean of 16 verdicts is a multiple of 1/16: of 32 it would be one of 1/32, of 8 always an even one.
    right = [record.reward * ROLLOUTS for record in manifest.training if record.reward is not None]
    assert all(count.is_integer() for count in right)
    assert any(count % 2 for count in right)
    assert printed.count("step 10 of 10") == 1


def test_two_processes_write_one_ledger_entry_and_leave_no_state(whole: tuple[Path, str]) -> None:
    out, _ = whole
    [entry] = ledger_of(out)
    assert (entry["status"], entry["steps"], entry["processes"]) == ("done", 10, 2)
    assert not (out.parent / "training").exists()


def test_accelerate_launches_the_same_run(whole: tuple[Path, str], study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "trajectory"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    program = ["--no_python", warm_programs() / "rlstride"]
    command = [*launcher, *plain, *program, *arguments(study_file, "random/grpo/0", out)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert digests(out) == digests(whole[0])
    [entry] = ledger_of(out)
    assert entry["processes"] == 2


def test_a_finished_run_is_finished_for_every_process(
    whole: tuple[Path, str], study_file: Path, tmp_path: Path
) -> None:
    out, _ = whole
    again = launch(tmp_path, 3, main, arguments(study_file, "random/grpo/0", out))
    assert again.statuses() == [0, 0, 0]
    assert again.said("is finished already") == 1
    assert len(ledger_of(out)) == 1


@pytest.mark.parametrize("killed", [(0, 1), (1,)], ids=["all", "one"])
def test_two_processes_that_are_killed_resume_and_end_with_the_weights_of_two_that_were_not(
    whole: tuple[Path, str], study_file: Path, tmp_path: Path, killed: tuple[int, ...]
) -> None:
    out = tmp_path / "trajectory"
    verb = arguments(study_file, "random/grpo/0", out)
    run = launch(tmp_path, 2, main, verb)
    wait_for(out / "step_000004", run)
    for rank in killed:
        run.members[rank].kill()
    assert all(run.statuses()), "one is still waiting for the other, or the run ended before it could be killed"
    assert not (out / "manifest.json").exists()

    again = launch(tmp_path, 2, main, verb)
    assert again.statuses() == [0, 0]
    assert again.said("resumes from step") == 1
    assert ledger_of(out)[-1]["resumed_from"] in (2, 4, 6, 8)
    assert digests(out) == digests(whole[0])


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_one_process_goes_on_alone(
    study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trajectory"
    run = launch(tmp_path, 2, main, arguments(study_file, "random/grpo/0", out))
    wait_for(out / "step_000002", run)
    run.members[1].terminate()
    assert run.statuses() == [1, 1]
    assert run.said("stopped by SIGTERM after step") == 1
    assert [entry["status"] for entry in ledger_of(out)] == ["failed"]
    reached = max(int(mark.parent.name.removeprefix("checkpoint-")) for mark in out.parent.glob("training/*/complete"))

    train(study_file, "random/grpo/0", out)
    assert ledger_of(out)[-1]["resumed_from"] == reached
    assert [record.step for record in read_manifest(out).steps] == KEPT


@pytest.mark.parametrize("trainer", ["ppo", "dist"])
def test_minibatches_and_a_teachers_completions_are_shared_too(study_file: Path, tmp_path: Path, trainer: str) -> None:
    out = tmp_path / "trajectory"
    assert launch(tmp_path, 2, main, arguments(study_file, f"random/{trainer}/0", out)).statuses() == [0, 0]
    manifest = read_manifest(out)
    assert [record.step for record in manifest.training] == list(range(1, 11))
    assert all((record.reward or 0) * ROLLOUTS % 1 == 0 for record in manifest.training)


def test_two_processes_fine_tune_to_the_weights_of_one(study_file: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone" / "trajectory", tmp_path / "together" / "trajectory"
    train(study_file, "random/sft/0", alone)
    assert launch(tmp_path, 2, main, arguments(study_file, "random/sft/0", together)).statuses() == [0, 0]
    expected, found = (load_file(out / "step_000010" / "model.safetensors") for out in (alone, together))
    for name, weight in expected.items():
        # Ten updates of Adam at a rate of 1e-3 move a weight by up to 1e-2.
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "processes", "device", "environment", "sentence"),
    [
        ("grpo", 3, "cpu", {}, "16 sequences in each update .* cannot be shared equally by 3 processes"),
        ("dapo", 2, "cpu", {}, "dapo: dynamic sampling needs one process, not 2"),
        ("grpo", 2, "cuda", {"CUDA_VISIBLE_DEVICES": ""}, "device: cuda, but torch finds no GPU on this machine"),
        ("grpo", 1, "cuda", {"CUDA_VISIBLE_DEVICES": ""}, "device: cuda, but torch finds no GPU on this machine"),
        ("ppo", 2, "cpu", {"ACCELERATE_USE_FSDP": "true"}, "FSDP: sharded models cannot be trained"),
    ],
    ids=["uneven", "dapo", "no-gpu", "no-gpu-alone", "fsdp"],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    study_file: Path,
    tmp_path: Path,
    algorithm: str,
    processes: int,
    device: str,
    environment: dict[str, str],
    sentence: str,
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(study_file.read_text()) | {"device": device}))
    out = tmp_path / "trajectory"
    run = launch(tmp_path, processes, main, arguments(file, f"random/{algorithm}/0", out), **environment)
    assert run.statuses() == [2] * processes
    assert run.said("rlstride train: ") == 1
    [line] = [line for log in run.logs for line in log.read_text().splitlines() if "rlstride train: " in line]
    assert re.search(sentence, line)
    assert not (out / "manifest.json").exists()


ADAPTERS: dict[str, dict[str, Any] | None] = {"full": None, "lora": {"kind": "lora", "rank": 4, "alpha": 2}}


@pytest.fixture(scope="module")
def of_two(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of three runs of two processes: stride, full and lora; one launch makes all of them."""
    root = tmp_path_factory.mktemp("of-two")
    runs: list[tuple[str, Path, Path]] = [("stride", study_file, root / "stride")]
    for name, adapter in ADAPTERS.items():
        study = yaml.safe_load(study_file.read_text())
        study["training"] |= {"adapter": adapter, "steps": 6}
        file = root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(study))
        runs.append(("extrapolate", file, root / name))
    for name in ("stride", *ADAPTERS):
        (root / name).mkdir()
    run = launch(root, 2, one_rank.main, runs)
    assert run.statuses() == [0, 0], [log.read_text() for log in run.logs]
    return root


def ends_of_two(out: Path) -> tuple[list[dict[str, torch.Tensor]], list[Any]]:
    """The weights that each of two processes ended with, and what its callback found."""
    ranks = [out / f"rank{rank}" for rank in (0, 1)]
    found = [json.loads(rank.with_suffix(".json").read_text()) for rank in ranks]
    return [load_file(rank.with_suffix(".safetensors")) for rank in ranks], found


def test_all_processes_jump_alike_and_end_with_the_same_weights(of_two: Path) -> None:
    (one, other), histories = ends_of_two(of_two / "stride")
    assert [entry["factor"] for entry in histories[0]] == [entry["factor"] for entry in histories[1]]
    assert any(entry["factor"] > 1 for entry in histories[0])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_all_processes_extrapolate_alike_and_train_on_together(of_two: Path, adapter: str) -> None:
    (one, other), reports = ends_of_two(of_two / adapter)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert reports[0] == reports[1]
    assert (reports[0]["factor"], reports[0]["kept_steps"]) == (1.5, [2, 4])  # 6 steps over 4
    base = load_file(of_two / adapter / "window" / "base" / "model.safetensors")
    moved = [name for name in base if ".layers." in name and "_proj" in name]
    named = {name.replace(".base_layer.", ".").removeprefix("base_model.model."): name for name in one}
    assert moved
    assert all(not torch.equal(one[named[name]], base[name]) for name in moved)

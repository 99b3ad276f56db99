"""Runs that are killed or stopped at any moment go on from their last checkpoint, to the same weights."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_training import digests, study_file, train

from children import LONGEST_WAIT, start
from rlstride.trajectory.manifest import read_manifest

__all__ = ["study_file"]  # the fixture
pytestmark = pytest.mark.slow

TRAINERS = ["grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "dapo", "gspo", "sft", "dist", "strides"]
KILLS_OF_EACH = 3  # 30 in all


def verb(study: Path, cell: str, out: Path) -> list[str | Path]:
    return ["train", "--study", study, "--cell", cell, "--out", out]


def complete_checkpoints(out: Path) -> list[Path]:
    return list((out.parent / "training").glob("checkpoint-*/complete"))


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_runs_killed_at_random_moments_end_with_the_weights_of_an_uninterrupted_one(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    cell = f"random/{algorithm}/0"
    whole = tmp_path / "whole" / "trajectory"
    began = time.monotonic()
    train(study_file, cell, whole)
    length, moments = time.monotonic() - began, random.Random(algorithm)
    kills, attempt, out = 0, 0, tmp_path / "0" / "trajectory"
    while kills < KILLS_OF_EACH:
        child = start(verb(study_file, cell, out))
        child.join(moments.uniform(0.0, length))
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
        else:  # it was done before its moment came: the next kills fall into a new run
            assert child.exitcode == 0
            assert digests(out) == digests(whole)
            attempt += 1
            out = tmp_path / str(attempt) / "trajectory"
    had_checkpoint = bool(complete_checkpoints(out))
    child = start(verb(study_file, cell, out))
    child.join(LONGEST_WAIT)
    assert child.exitcode == 0
    assert digests(out) == digests(whole)
    last = json.loads((out.parent / "ledger" / "train.jsonl").read_text().splitlines()[-1])
    assert last["resumed_from"] > 0 or not had_checkpoint


def test_a_run_asked_to_stop_saves_says_so_and_goes_on_later(study_file: Path, tmp_path: Path) -> None:
    cell = "random/grpo/0"
    whole, out = tmp_path / "whole" / "trajectory", tmp_path / "stopped" / "trajectory"
    train(study_file, cell, whole)
    child = start(verb(study_file, cell, out))
    deadline = time.monotonic() + LONGEST_WAIT
    while not (out / "step_000002").is_dir() and time.monotonic() < deadline:
        time.sleep(0.005)
    child.terminate()
    child.join(LONGEST_WAIT)
    assert child.exitcode == 1, "a stopped run must fail, so that the workflow tries again"
    assert not (out / "manifest.json").exists()
    reached = max(int(path.parent.name.removeprefix("checkpoint-")) for path in complete_checkpoints(out))
    train(study_file, cell, out)
    ledger = [json.loads(line) for line in (out.parent / "ledger" / "train.jsonl").read_text().splitlines()]
    assert [entry["status"] for entry in ledger] == ["failed", "done"]
    assert ledger[-1]["resumed_from"] == reached
    assert digests(out) == digests(whole)
    assert [record.step for record in read_manifest(out).training] == list(range(1, 11))


def test_a_checkpoint_without_its_mark_is_never_read(study_file: Path, tmp_path: Path) -> None:
    cell = "random/grpo/0"
    whole, out = tmp_path / "whole" / "trajectory", tmp_path / "torn" / "trajectory"
    train(study_file, cell, whole)
    torn = out.parent / "training" / "checkpoint-6"
    torn.mkdir(parents=True)
    (torn.parent / "config_hash").write_text(read_manifest(whole).config_hash)
    (torn / "trainer_state.json").write_text('{"global_step": 6')
    train(study_file, cell, out)
    assert digests(out) == digests(whole)


def test_of_two_jobs_on_one_trajectory_one_writes_and_the_other_is_refused(study_file: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "trajectory", tmp_path / "0" / "trajectory"
    train(study_file, "random/grpo/0", whole)
    both = [start(verb(study_file, "random/grpo/0", out)) for _ in range(2)]
    for child in both:
        child.join(LONGEST_WAIT)
    assert sorted(child.exitcode or 0 for child in both) in (
        [0, 1],
        [0, 0],
    )  # the second may have come too late to meet
    assert digests(out) == digests(whole)
    assert not (out.parent / "training").exists()


def test_a_job_meets_the_lease_of_one_that_trains(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "0" / "trajectory"
    first = start(verb(study_file, "random/grpo/0", out))
    deadline = time.monotonic() + LONGEST_WAIT
    while not complete_checkpoints(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first.pid or 0, signal.SIGSTOP)  # it is there, and holds its lease
    second = start(verb(study_file, "random/grpo/0", out))
    second.join(LONGEST_WAIT)
    assert second.exitcode == 1
    os.kill(first.pid or 0, signal.SIGCONT)
    first.join(LONGEST_WAIT)
    assert first.exitcode == 0
    assert read_manifest(out).steps

"""What goes wrong with jobs, made to go wrong: the study ends with the weights of a run that nothing happened to."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
from cluster import ACCOUNT, Cluster, wait_until
from long_training import ends_well, frozen
from pandas.testing import assert_frame_equal
from study import TABLE, TRAJECTORY, Submission, ledger, table, write_study

pytestmark = pytest.mark.slow


def details(cluster: Cluster, sent: Submission, field: str) -> list[list[str]]:
    """State, and a field of accounting, of every job of a run."""
    about = ["--starttime", "now-1day", "--name", sent.run, f"--format=State,{field}"]
    return [row.split("|") for row in cluster.ask("sacct", "-X", "-n", "-P", *about).splitlines()]


def states(cluster: Cluster, before: int) -> list[str]:
    return [state for _, state in cluster.known()[before:]]


def test_a_training_that_was_killed_without_a_warning_goes_on_from_its_last_kept_step(
    cluster: Cluster, trained: Path, lone: Path
) -> None:
    sent = Submission(cluster, lone, TABLE)
    sent.when_training(40)
    os.kill(frozen(lone, 40), signal.SIGKILL)
    assert ends_well(sent, lone, trained)
    assert ledger(lone)["resumed_from"].iloc[-1] >= 40


def test_a_cancelled_training_saves_and_its_retry_goes_on_from_there(
    cluster: Cluster, trained: Path, lone: Path
) -> None:
    before = len(cluster.known())
    sent = Submission(cluster, lone, TABLE)
    job = sent.when_training(40)
    frozen(lone, 40)
    cluster.ask("scancel", job)
    assert ends_well(sent, lone, trained)
    assert "CANCELLED" in states(cluster, before)
    attempts = ledger(lone)
    assert list(attempts["status"]) == ["failed", "done"]
    assert attempts["resumed_from"].iloc[-1] >= 40


def test_a_cancelled_measurement_is_sent_again_and_finds_the_same(cluster: Cluster, local: Path, folder: Path) -> None:
    names, before = ("validation", "spectra", "drift"), len(cluster.known())
    write_study(folder, controls=[])
    sent = Submission(cluster, folder, *(f"results/on-slurm/tables/{name}.csv" for name in names))
    job = sent.job_of("measure")
    wait_until(lambda: any((folder / TRAJECTORY.parent).glob("*.parquet")), 900)  # between two of its stages
    cluster.ask("scancel", job)
    assert sent.wait() == 0, sent.said
    assert states(cluster, before).count("CANCELLED") == 1
    for name in names:
        expected = table(local, name).query("algorithm == 'grpo'").reset_index(drop=True)
        assert_frame_equal(table(folder, name), expected)


def test_a_training_over_its_time_limit_saves_and_its_retry_has_more_time(
    cluster: Cluster, trained: Path, lone: Path
) -> None:
    limit = "--set-resources", "train_cell:runtime=10 * attempt"  # minutes
    sent = Submission(cluster, lone, TABLE, *limit)
    job = sent.when_training(20)
    assert json.loads((lone / TRAJECTORY.with_name("training") / "lease.json").read_text())["job"] == job
    frozen(lone, 20)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # which it is over soon, or already
    assert ends_well(sent, lone, trained)
    assert details(cluster, sent, "Timelimit") == [["TIMEOUT", "00:01:00"], ["COMPLETED", "00:20:00"]]
    assert list(ledger(lone)["status"]) == ["failed", "done"]
    assert ledger(lone)["resumed_from"].iloc[-1] >= 20


def test_a_training_that_asked_for_a_signal_saves_before_its_time_limit(
    cluster: Cluster, trained: Path, lone: Path
) -> None:
    asked = "--set-resources", "train_cell:runtime=10 * attempt", "train_cell:slurm_extra='--signal=TERM@300'"
    sent = Submission(cluster, lone, TABLE, *asked)
    job = sent.when_training(20)
    frozen(lone, 20)
    elapsed = cluster.ask("squeue", "-h", "-j", job, "-o", "%M").strip()
    minutes = sum(int(part) * unit for part, unit in zip(reversed(elapsed.split(":")), (1 / 60, 1, 60), strict=False))
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={math.ceil(minutes) + 5}")
    assert ends_well(sent, lone, trained)
    attempts = ledger(lone)  # the second one begins in the same job, which Snakemake uses to its end
    assert list(attempts["status"]) == ["failed", "done"]
    assert attempts["resumed_from"].iloc[1] >= 20
    assert details(cluster, sent, "JobIDRaw") == [["COMPLETED", job]]  # nothing was ended by its limit


def test_a_preempted_training_saves_and_goes_on_from_there(cluster: Cluster, trained: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE, "--set-resources", "train_cell:slurm_partition=pair")
    sent.when_training(40)
    frozen(lone, 40)
    cluster.ask("sbatch", "-A", ACCOUNT, "-p", "urgent", "-N", "2", "--exclusive", "-D", str(lone), "--wrap", "sleep 5")
    assert ends_well(sent, lone, trained)
    attempts = ledger(lone)
    assert attempts["status"].iloc[0] == "failed"
    assert attempts["resumed_from"].iloc[1] >= 40


def test_a_training_out_of_memory_is_sent_again_with_more(cluster: Cluster, trained: Path, lone: Path) -> None:
    memory = "--set-resources", "train_cell:mem_mb=300 * 4 ** (attempt - 1)"
    sent = Submission(cluster, lone, TABLE, *memory)
    assert ends_well(sent, lone, trained)
    asked = cluster.ask(
        "sacct", "-X", "-n", "-P", "--starttime", "now-1day", "--name", sent.run, "--format=ReqMem,State"
    )
    rows = [row.split("|") for row in asked.splitlines()]
    assert ["300M", "FAILED"] in rows or ["300M", "OUT_OF_MEMORY"] in rows
    assert ["1200M", "COMPLETED"] in rows

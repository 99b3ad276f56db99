"""What goes wrong on a cluster, made to go wrong: the study ends with the weights of a run that nothing happened to."""

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ACCOUNT, Cluster, wait_until
from pandas.testing import assert_frame_equal
from study import Submission, command, ledger, table

from rlstride.training.callbacks import last_complete_checkpoint, step_of
from rlstride.trajectory.manifest import read_manifest

pytestmark = pytest.mark.slow

TABLE = "results/on-slurm/tables/training.csv"
TRAJECTORY = Path("results", "on-slurm", "micro", "grpo", "seed0", "trajectory")


def weights(folder: Path) -> dict[int, dict[str, str]]:
    return {record.step: record.sha256 for record in read_manifest(folder / TRAJECTORY).steps}


def ends_well(sent: Submission, folder: Path, local: Path) -> bool:
    assert sent.wait() == 0, sent.said
    assert (folder / TABLE).is_file()
    assert not (folder / TRAJECTORY.with_name("training")).exists()  # no state, and no lease, is left
    return weights(folder) == weights(local)


def details(cluster: Cluster, sent: Submission, field: str) -> list[list[str]]:
    """State, and a field of accounting, of every job of a run."""
    about = ["--starttime", "now-1day", "--name", sent.run, f"--format=State,{field}"]
    return [row.split("|") for row in cluster.ask("sacct", "-X", "-n", "-P", *about).splitlines()]


def states(cluster: Cluster, before: int) -> list[str]:
    return [state for _, state in cluster.known()[before:]]


def frozen(lone: Path, step: int) -> int:
    """Stops the training at hand, once it has saved a step, until it is told to end: it cannot be done before."""
    state = lone / TRAJECTORY.with_name("training")

    def is_saved() -> bool:  # a moment after it is kept
        checkpoint = last_complete_checkpoint(state)
        return checkpoint is not None and step_of(checkpoint) >= step

    wait_until(is_saved)
    process = json.loads((state / "lease.json").read_text())["pid"]
    os.kill(process, signal.SIGSTOP)

    def go_on_when_told() -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            while not is_told_to_end(process):
                time.sleep(0.1)
            os.kill(process, signal.SIGCONT)

    threading.Thread(target=go_on_when_told, daemon=True).start()
    return process


def is_told_to_end(process: int) -> bool:
    """Whether a stopped process has a SIGTERM waiting for it."""
    status = Path(f"/proc/{process}/status").read_text()
    waiting = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, flags=re.MULTILINE)
    return any(int(signals, 16) >> (signal.SIGTERM - 1) & 1 for signals in waiting)


@contextlib.contextmanager
def slowed(process: int) -> Iterator[None]:
    """Has a process run for a tenth of the time only, so that its lease stays fresh, while the block lasts."""
    over = threading.Event()

    def stop_and_go() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                for number, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
                    os.kill(process, number)
                    over.wait(seconds)
            os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_training_that_was_killed_without_a_warning_goes_on_from_its_last_kept_step(
    cluster: Cluster, local: Path, lone: Path
) -> None:
    sent = Submission(cluster, lone, TABLE)
    sent.when_training(80)
    os.kill(frozen(lone, 80), signal.SIGKILL)
    assert ends_well(sent, lone, local)
    assert ledger(lone)["resumed_from"].iloc[-1] >= 80


def test_a_cancelled_training_saves_and_its_retry_goes_on_from_there(cluster: Cluster, local: Path, lone: Path) -> None:
    before = len(cluster.known())
    sent = Submission(cluster, lone, TABLE)
    job = sent.when_training(80)
    frozen(lone, 80)
    cluster.ask("scancel", job)
    assert ends_well(sent, lone, local)
    assert "CANCELLED" in states(cluster, before)
    attempts = ledger(lone)
    assert list(attempts["status"]) == ["failed", "done"]
    assert attempts["resumed_from"].iloc[-1] >= 80


def test_a_cancelled_measurement_is_sent_again_and_finds_the_same(cluster: Cluster, local: Path, lone: Path) -> None:
    names, before = ("validation", "spectra", "drift"), len(cluster.known())
    sent = Submission(cluster, lone, *(f"results/on-slurm/tables/{name}.csv" for name in names))
    job = sent.job_of("measure")
    wait_until(lambda: any((lone / TRAJECTORY.parent).glob("*.parquet")), 900)  # between two of its stages
    cluster.ask("scancel", job)
    assert sent.wait() == 0, sent.said
    assert states(cluster, before).count("CANCELLED") == 1
    for name in names:
        expected = table(local, name).query("algorithm == 'grpo'").reset_index(drop=True)
        assert_frame_equal(table(lone, name), expected)


def test_a_training_over_its_time_limit_saves_and_its_retry_has_more_time(
    cluster: Cluster, local: Path, lone: Path
) -> None:
    limit = "--set-resources", "train_cell:runtime=10 * attempt"  # minutes
    sent = Submission(cluster, lone, TABLE, *limit)
    job = sent.when_training(40)
    assert json.loads((lone / TRAJECTORY.with_name("training") / "lease.json").read_text())["job"] == job
    frozen(lone, 40)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # which it is over soon, or already
    assert ends_well(sent, lone, local)
    assert details(cluster, sent, "Timelimit") == [["TIMEOUT", "00:01:00"], ["COMPLETED", "00:20:00"]]
    assert list(ledger(lone)["status"]) == ["failed", "done"]
    assert ledger(lone)["resumed_from"].iloc[-1] >= 40


def test_a_training_that_asked_for_a_signal_saves_before_its_time_limit(
    cluster: Cluster, local: Path, lone: Path
) -> None:
    asked = "--set-resources", "train_cell:runtime=10 * attempt", "train_cell:slurm_extra='--signal=TERM@300'"
    sent = Submission(cluster, lone, TABLE, *asked)
    job = sent.when_training(40)
    frozen(lone, 40)
    elapsed = cluster.ask("squeue", "-h", "-j", job, "-o", "%M").strip()
    minutes = sum(int(part) * unit for part, unit in zip(reversed(elapsed.split(":")), (1 / 60, 1, 60), strict=False))
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={math.ceil(minutes) + 5}")
    assert ends_well(sent, lone, local)
    attempts = ledger(lone)  # the second one begins in the same job, which Snakemake uses to its end
    assert list(attempts["status"]) == ["failed", "done"]
    assert attempts["resumed_from"].iloc[1] >= 40
    assert details(cluster, sent, "JobIDRaw") == [["COMPLETED", job]]  # nothing was ended by its limit


def test_a_preempted_training_saves_and_goes_on_from_there(cluster: Cluster, local: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE, "--set-resources", "train_cell:slurm_partition=pair")
    sent.when_training(80)
    frozen(lone, 80)
    cluster.ask("sbatch", "-A", ACCOUNT, "-p", "urgent", "-N", "2", "--exclusive", "-D", str(lone), "--wrap", "sleep 5")
    assert ends_well(sent, lone, local)
    attempts = ledger(lone)
    assert attempts["status"].iloc[0] == "failed"
    assert attempts["resumed_from"].iloc[1] >= 80


def test_a_training_out_of_memory_is_sent_again_with_more(cluster: Cluster, local: Path, lone: Path) -> None:
    memory = "--set-resources", "train_cell:mem_mb=300 * 4 ** (attempt - 1)"
    sent = Submission(cluster, lone, TABLE, *memory)
    assert ends_well(sent, lone, local)
    asked = cluster.ask(
        "sacct", "-X", "-n", "-P", "--starttime", "now-1day", "--name", sent.run, "--format=ReqMem,State"
    )
    rows = [row.split("|") for row in asked.splitlines()]
    assert ["300M", "FAILED"] in rows or ["300M", "OUT_OF_MEMORY"] in rows
    assert ["1200M", "COMPLETED"] in rows


def test_a_node_that_is_lost_in_mid_training_costs_an_attempt(cluster: Cluster, local: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE)
    job = sent.when_training(80)
    node = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    try:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        assert ends_well(sent, lone, local)
    finally:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    assert ledger(lone)["resumed_from"].iloc[-1] >= 80


def test_a_node_daemon_that_dies_and_comes_back_disturbs_nothing(cluster: Cluster, local: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE)
    job = sent.when_training(40)
    node = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.end_node(node)
    time.sleep(5)
    cluster.start_node(node)
    assert ends_well(sent, lone, local)


@pytest.mark.parametrize("seconds", [20, 90])
def test_a_controller_that_is_away_is_waited_for(cluster: Cluster, local: Path, lone: Path, seconds: int) -> None:
    sent = Submission(cluster, lone, TABLE)
    sent.when_training(40)
    cluster.end_controller()
    time.sleep(seconds)
    cluster.start_controller()
    assert ends_well(sent, lone, local)


def test_jobs_that_become_ready_while_the_controller_is_away_are_sent_later(
    cluster: Cluster, local: Path, lone: Path
) -> None:
    cluster.end_controller()
    sent = Submission(cluster, lone, TABLE)
    time.sleep(60)
    cluster.start_controller()
    assert ends_well(sent, lone, local)


def test_an_accounting_that_is_away_is_waited_for(cluster: Cluster, local: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE)
    sent.when_training(40)
    cluster.end_database()
    time.sleep(45)
    cluster.start_database()
    assert ends_well(sent, lone, local)


def test_jobs_of_a_killed_snakemake_are_ended_before_the_next_one_sends_any(
    cluster: Cluster, local: Path, lone: Path
) -> None:
    first = Submission(cluster, lone, TABLE)
    orphan = first.when_training(80)
    frozen(lone, 80)
    first.kill()
    rlstride = str(Path(sys.executable).parent / "rlstride")
    assert f"job {orphan}: running" in cluster.run(lone, rlstride, "cluster", "orphans", "results/on-slurm").stdout
    cluster.run(lone, *command("--unlock"))
    second = Submission(cluster, lone, TABLE)
    assert ends_well(second, lone, local)
    assert "that an earlier run left" in second.said
    assert orphan in second.said
    assert dict(cluster.known())[orphan] == "CANCELLED"
    assert ledger(lone)["resumed_from"].iloc[-1] >= 80


def test_two_jobs_on_one_trajectory_take_turns(cluster: Cluster, local: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE)
    sent.when_training(40)
    verb = f"{Path(sys.executable).parent / 'rlstride'} train --study study.yaml --cell micro/grpo/0 --out {TRAJECTORY}"
    arguments = ("-A", ACCOUNT, "--mem", "1000", "-D", str(lone), "-o", "second.log", "--wrap", verb)
    with slowed(json.loads((lone / TRAJECTORY.with_name("training") / "lease.json").read_text())["pid"]):
        second = cluster.ask("sbatch", "--parsable", *arguments)
        log = lone / "second.log"
        wait_until(lambda: log.is_file() and "waits" in log.read_text())
    assert ends_well(sent, lone, local)
    wait_until(lambda: dict(cluster.known()).get(second.strip()) in ("COMPLETED", "FAILED"))
    said = log.read_text()
    assert dict(cluster.known())[second.strip()] == "COMPLETED", said
    assert "finished already" in said

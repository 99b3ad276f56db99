"""Nodes, daemons and Snakemake go away: the study ends with the weights of a run that nothing happened to."""

import json
import sys
import time
from pathlib import Path

import pytest
from cluster import ACCOUNT, Cluster, wait_until
from long_training import ends_well, frozen, slowed
from study import TABLE, TRAJECTORY, Submission, command, ledger

pytestmark = pytest.mark.slow


def test_a_node_that_is_lost_in_mid_training_costs_an_attempt(cluster: Cluster, trained: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE)
    job = sent.when_training(40)
    node = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    try:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        assert ends_well(sent, lone, trained)
    finally:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    assert ledger(lone)["resumed_from"].iloc[-1] >= 40


def test_a_node_daemon_that_dies_and_comes_back_disturbs_nothing(cluster: Cluster, trained: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE, warm=True)
    job = sent.when_training(20)
    node = cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.end_node(node)
    time.sleep(5)
    cluster.start_node(node)
    assert ends_well(sent, lone, trained)


@pytest.mark.parametrize("seconds", [20, 90])
def test_a_controller_that_is_away_is_waited_for(cluster: Cluster, trained: Path, lone: Path, seconds: int) -> None:
    sent = Submission(cluster, lone, TABLE, warm=True)
    sent.when_training(20)
    cluster.end_controller()
    time.sleep(seconds)
    cluster.start_controller()
    assert ends_well(sent, lone, trained)


def test_jobs_that_become_ready_while_the_controller_is_away_are_sent_later(
    cluster: Cluster, trained: Path, lone: Path
) -> None:
    cluster.end_controller()
    sent = Submission(cluster, lone, TABLE, warm=True)
    time.sleep(60)
    cluster.start_controller()
    assert ends_well(sent, lone, trained)


def test_an_accounting_that_is_away_is_waited_for(cluster: Cluster, trained: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE, warm=True)
    sent.when_training(20)
    cluster.end_database()
    time.sleep(45)
    cluster.start_database()
    assert ends_well(sent, lone, trained)


def test_jobs_of_a_killed_snakemake_are_ended_before_the_next_one_sends_any(
    cluster: Cluster, trained: Path, lone: Path
) -> None:
    first = Submission(cluster, lone, TABLE)
    orphan = first.when_training(40)
    frozen(lone, 40)
    first.kill()
    rlstride = str(Path(sys.executable).parent / "rlstride")
    assert f"job {orphan}: running" in cluster.run(lone, rlstride, "cluster", "orphans", "results/on-slurm").stdout
    cluster.run(lone, *command("--unlock"))
    second = Submission(cluster, lone, TABLE)
    assert ends_well(second, lone, trained)
    assert "that an earlier run left" in second.said
    assert orphan in second.said
    assert dict(cluster.known())[orphan] == "CANCELLED"
    assert ledger(lone)["resumed_from"].iloc[-1] >= 40


def test_two_jobs_on_one_trajectory_take_turns(cluster: Cluster, trained: Path, lone: Path) -> None:
    sent = Submission(cluster, lone, TABLE, warm=True)
    sent.when_training(20)
    verb = f"{Path(sys.executable).parent / 'rlstride'} train --study study.yaml --cell micro/grpo/0 --out {TRAJECTORY}"
    arguments = ("-A", ACCOUNT, "--mem", "1000", "-D", str(lone), "-o", "second.log", "--wrap", verb)
    with slowed(json.loads((lone / TRAJECTORY.with_name("training") / "lease.json").read_text())["pid"]):
        second = cluster.ask("sbatch", "--parsable", *arguments)
        log = lone / "second.log"
        wait_until(lambda: log.is_file() and "waits" in log.read_text())
    assert ends_well(sent, lone, trained)
    wait_until(lambda: dict(cluster.known()).get(second.strip()) in ("COMPLETED", "FAILED"), every=0.5)
    said = log.read_text()
    assert dict(cluster.known())[second.strip()] == "COMPLETED", said
    assert "finished already" in said

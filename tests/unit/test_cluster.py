"""What Slurm's commands print, read; and whose jobs are orphans."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from rlstride.cluster.orphans import announced_run, end_orphans, ended_runs, note_run, runs_elsewhere
from rlstride.cluster.slurm import gpus_of, minutes_of
from rlstride.errors import WorkError
from rlstride.training.lease import Holder


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("infinite", None),
        ("10:00", 10),
        ("1:30:00", 90),
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("0:30", 1),
        ("7-06:30:00", 7 * 1440 + 390),
    ],
)
def test_time_limits_are_read_as_minutes(limit: str, minutes: int | None) -> None:
    assert minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu", {"": 1}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:2,gpu:h100:1", {"a100": 2, "h100": 1}),
        ("craynetwork:4,gpu:nvidia_a100_80gb.1:8(S:0)", {"nvidia_a100_80gb.1": 8}),
        ("nic:2", {}),
    ],
)
def test_gpus_are_counted_by_model(gres: str, gpus: dict[str, int]) -> None:
    assert gpus_of(gres) == gpus


def test_the_executors_run_id_is_found_in_snakemakes_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("host: login\nSLURM run ID: 5e0c-17\nBuilding DAG of jobs...\n")
    assert announced_run([str(log)]) == "5e0c-17"
    log.write_text("Building DAG of jobs...\n")
    assert announced_run([str(log)]) is None
    assert announced_run([]) is None


def test_runs_whose_snakemake_goes_on_here_have_no_orphans(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    me = asdict(Holder.here())
    entries = [
        {"run": "here and alive", **me},
        {"run": "here and dead", **me, "pid": int(ended.stdout)},
        {"run": "elsewhere", **me, "boot": "another machine", "host": "login2"},
        {"run": "before a restart of this machine", **me, "boot": "another start"},
    ]
    (tmp_path / "cluster-runs.json").write_text(json.dumps(entries))
    assert ended_runs(tmp_path) == ["here and dead", "elsewhere", "before a restart of this machine"]
    assert runs_elsewhere(tmp_path) == {"elsewhere": "login2"}
    note_run(tmp_path, "new")
    noted = json.loads((tmp_path / "cluster-runs.json").read_text())
    assert [(entry["run"], entry["pid"]) for entry in noted] == [("here and alive", os.getpid()), ("new", os.getpid())]


def test_a_study_that_never_was_on_a_cluster_has_no_orphans(tmp_path: Path) -> None:
    assert ended_runs(tmp_path) == []


def test_jobs_of_a_run_that_may_go_on_elsewhere_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"run": "5e0c", **asdict(Holder.here()), "boot": "another machine", "host": "login2"}
    (tmp_path / "cluster-runs.json").write_text(json.dumps([entry]))
    (tmp_path / "squeue").write_text('#!/bin/sh\necho "17|RUNNING"\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(WorkError, match=r"1 job \(17\) of a run that began on login2, and may go on there"):
        end_orphans(tmp_path)

"""profiles/generic on a batch system with Torque's commands: Slurm's imitation of them, which reads no `-l select`."""

import shutil
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from study import COMPARED, ROOT, assert_same_tables, command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qsub") is None, reason="no qsub (Debian: slurm-wlm-torque)"),
]

NAME = "of-generic."  # no other test's
QSUB = "qsub -V -N of-generic.{rule} -l nodes=1:ppn={threads},mem={resources.mem_mb}mb,walltime={resources.runtime}:00"


def test_a_study_sent_with_qsub_ends_with_the_tables_of_a_local_one(
    cluster: Cluster, local: Path, folder: Path
) -> None:
    submit = ("--cluster-generic-submit-cmd", QSUB, "--latency-wait", "10")
    called = command(*COMPARED, profile=ROOT / "profiles" / "generic", waits=submit, resources=("gpu=0",), warm=True)
    cluster.run(folder, *called, longest=1800)
    assert_same_tables(folder, local)
    # What says that a job has ended is the last thing that it does: Slurm knows it a moment later.
    going = {"PENDING", "RUNNING", "COMPLETING"}
    wait_until(lambda: not going & {state for _, state in cluster.jobs_named(NAME)}, every=0.5)
    jobs = cluster.jobs_named(NAME)
    # The plugin calls every group so.
    done = [name.removeprefix(NAME) for name, state in jobs if state == "COMPLETED"]
    assert sorted(done) == ["GROUP", "GROUP", "train_cell", "train_cell"], jobs  # of the run, and of its control

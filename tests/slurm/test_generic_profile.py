"""profiles/generic on a batch system with Torque's commands: Slurm's imitation of them, which reads no `-l select`."""

import shutil
from pathlib import Path

import pytest
from cluster import Cluster
from study import ROOT, assert_same_tables, command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qsub") is None, reason="no qsub (Debian: slurm-wlm-torque)"),
]

QSUB = "qsub -V -N rlstride.{rule} -l nodes=1:ppn={threads},mem={resources.mem_mb}mb,walltime={resources.runtime}:00"


def test_a_study_sent_with_qsub_ends_with_the_tables_of_a_local_one(
    cluster: Cluster, local: Path, folder: Path
) -> None:
    sent = len(cluster.known())
    submit = ("--cluster-generic-submit-cmd", QSUB, "--latency-wait", "10")
    called = command(profile=ROOT / "profiles" / "generic", waits=submit, resources=("gpu=0",))
    cluster.run(folder, *called, longest=420)
    assert_same_tables(folder, local)
    assert len(cluster.known()) - sent == 4  # training and measuring, of the run and of its frozen control

"""profiles/generic on a batch system with Torque's commands: Slurm's imitation of them, which reads no `-l select`."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import Cluster
from pandas.testing import assert_frame_equal
from study import ROOT, command, table
from test_study_on_slurm import TABLES

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
    done = subprocess.run(
        called, cwd=folder, env=cluster.environment, capture_output=True, text=True, timeout=420, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in TABLES:
        assert_frame_equal(table(folder, name), table(local, name))
    assert len(cluster.known()) - sent == 4  # training and measuring, of the run and of its frozen control

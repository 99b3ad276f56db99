"""A whole study through the profile: the tables of a local run, in two jobs for each cell."""

from pathlib import Path

import pandas as pd
import pytest
from cluster import Cluster
from study import Submission, assert_same_tables

pytestmark = pytest.mark.slow


def test_a_study_on_a_cluster_ends_with_the_tables_of_a_local_run_in_two_jobs_for_each_run(
    cluster: Cluster, local: Path, folder: Path
) -> None:
    sent = Submission(cluster, folder)
    assert sent.wait() == 0, sent.said
    assert_same_tables(folder, local)
    states = [state for _, state in cluster.jobs_named(sent.run)]
    assert states == ["COMPLETED"] * 4, sent.said  # train and measure, of a cell and its control
    steps = cluster.ask("sacct", "-n", "-P", "--starttime", "now-1day", "--name", sent.run, "--format=JobID").split()
    assert sum(step.endswith(".0") for step in steps) == 4
    assert not any(step.endswith(".1") for step in steps), "a job is one step, also where it has many rules"
    assert (folder / "results" / "on-slurm" / "report" / "index.html").is_file()
    (efficiency,) = (folder / ".snakemake" / "slurm_efficiency").glob("*.csv")
    used = pd.read_csv(efficiency)
    assert len(used) == 4
    assert (used["MaxRSS_MB"] > 100).all()

"""A whole study through the profile: the tables of a local run, in two jobs for each cell."""

from pathlib import Path

import pytest
from cluster import Cluster
from study import Submission, assert_same_tables

pytestmark = pytest.mark.slow


def test_a_study_on_a_cluster_ends_with_the_tables_of_a_local_run_in_two_jobs_for_each_run(
    cluster: Cluster, local: Path, folder: Path
) -> None:
    before = len(cluster.known())
    sent = Submission(cluster, folder)
    assert sent.wait() == 0, sent.said
    assert_same_tables(folder, local)
    jobs = cluster.known()[before:]
    assert [state for _, state in jobs] == ["COMPLETED"] * 4, sent.said  # train and measure, of a cell and its control
    assert (folder / "results" / "on-slurm" / "report" / "index.html").is_file()
    assert list((folder / ".snakemake" / "slurm_efficiency").glob("*.csv"))

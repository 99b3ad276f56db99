"""A whole study through the profile: the tables of a local run, in two jobs for each cell."""

from pathlib import Path

import pytest
from cluster import Cluster
from pandas.testing import assert_frame_equal
from study import Submission, table

pytestmark = pytest.mark.slow

TABLES = ("accuracy", "validation", "dominance", "spectra", "dynamics", "drift", "training", "learning")


def test_a_study_on_a_cluster_ends_with_the_tables_of_a_local_run_in_two_jobs_for_each_run(
    cluster: Cluster, local: Path, folder: Path
) -> None:
    before = len(cluster.known())
    sent = Submission(cluster, folder)
    assert sent.wait() == 0, sent.said
    for name in TABLES:
        assert_frame_equal(table(folder, name), table(local, name))
    jobs = cluster.known()[before:]
    assert [state for _, state in jobs] == ["COMPLETED"] * 4, sent.said  # train and measure, of a cell and its control
    assert (folder / "results" / "on-slurm" / "report" / "index.html").is_file()
    assert list((folder / ".snakemake" / "slurm_efficiency").glob("*.csv"))

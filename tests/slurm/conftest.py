"""The cluster that the tests share, and the study's results without one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from study import run_locally, write_study


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of four nodes with accounting; skips where none can be started."""
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study that was run on this machine alone, whole."""
    folder = tmp_path_factory.mktemp("local")
    write_study(folder)
    run_locally(folder)
    return folder


@pytest.fixture
def folder(local: Path, tmp_path: Path) -> Path:
    """A folder for the study, with its base."""
    write_study(tmp_path)
    shutil.copytree(local / "results" / "bases", tmp_path / "results" / "bases")
    return tmp_path

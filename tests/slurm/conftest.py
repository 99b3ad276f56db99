"""The cluster that the tests share, and the study's results without one."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from study import run_locally, write_study


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm of four nodes with accounting; skips where none can be started."""
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    # Not pytest's own folder: every pytest that starts closes it to other users, such as MariaDB's.
    started = Cluster(Path(tempfile.mkdtemp(prefix="rlstride-slurm-")))
    try:
        with (Path(tempfile.gettempdir()) / "rlstride-slurm.lock").open("w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)  # MariaDB's installer fails where two run at once
            started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(started.folder, ignore_errors=True)


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


@pytest.fixture
def lone(folder: Path) -> Path:
    """The folder of a study with one run and no control."""
    write_study(folder, controls=[])
    return folder

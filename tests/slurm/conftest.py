"""The cluster that the tests share, and the results of their two studies without one."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from study import COMPARED, TABLE, run_locally, write_long_study, write_study

from sharing import made_once


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
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the long training, made on this machine alone."""

    def make(folder: Path) -> None:
        write_long_study(folder)
        run_locally(folder, TABLE)

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture(scope="session")
def local(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study whose tables were made on this machine alone."""

    def make(folder: Path) -> None:
        write_study(folder)
        copy_base(trained, folder)
        run_locally(folder, *COMPARED)

    return made_once(tmp_path_factory, "local", make)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A folder for the study, with its base."""
    write_study(tmp_path)
    copy_base(trained, tmp_path)
    return tmp_path


@pytest.fixture
def lone(trained: Path, tmp_path: Path) -> Path:
    """The folder of the long training, with its base."""
    write_long_study(tmp_path)
    copy_base(trained, tmp_path)
    return tmp_path


def copy_base(trained: Path, folder: Path) -> None:
    """Both studies have the same one."""
    shutil.copytree(trained / "results" / "bases", folder / "results" / "bases")

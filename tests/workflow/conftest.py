"""The smoke study, which the tests of what it finds share."""

from pathlib import Path

import pytest
from pipeline import snakemake
from smoke import Finished

from sharing import made_once


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smoke study, run whole from pretraining to MLflow."""

    def make(folder: Path) -> None:
        done = snakemake(*Finished(folder / "results").request, timeout=3 * 3600, warm=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]

    return Finished(made_once(tmp_path_factory, "smoke", make) / "results")

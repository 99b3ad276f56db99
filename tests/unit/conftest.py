from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def default_study_file() -> str:
    return str(Path(__file__).parents[2] / "config" / "config.yaml")

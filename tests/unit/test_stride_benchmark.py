"""What benchmarks/stride.py reads off two runs."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_script() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("stride_benchmark", FOLDER / "stride.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def run(*accuracies: float) -> pd.DataFrame:
    steps = [10.0 * index for index in range(len(accuracies))]
    return pd.DataFrame(
        {"step": steps, "accuracy": accuracies, "seconds": [2 * s for s in steps], "tokens": [5 * s for s in steps]}
    )


def test_an_accuracy_between_two_kept_steps_is_reached_between_them(benchmark_script: ModuleType) -> None:
    assert benchmark_script.reach(run(0.4, 0.5, 0.9), 0.6) == {"step": 12.5, "seconds": 25.0, "tokens": 62.5}


def test_an_accuracy_is_reached_where_it_is_first_had(benchmark_script: ModuleType) -> None:
    assert benchmark_script.reach(run(0.4, 0.8, 0.8, 0.8), 0.8)["step"] == 10.0


def test_an_accuracy_that_is_never_had_takes_for_ever(benchmark_script: ModuleType) -> None:
    assert benchmark_script.reach(run(0.4, 0.5), 0.6)["step"] == math.inf


def test_an_accuracy_that_the_base_has_takes_no_step(benchmark_script: ModuleType) -> None:
    assert benchmark_script.reach(run(0.4, 0.5), 0.4)["step"] == 0.0

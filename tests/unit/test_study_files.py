"""Every study that ships with the project."""

from pathlib import Path

import pytest

from rlstride.budget.estimates import describe
from rlstride.study.load import load_study
from rlstride.tasks import build_task, draw_problems

CONFIG = Path(__file__).parents[2] / "config"
STUDIES = sorted([CONFIG / "config.yaml", *(CONFIG / "studies").glob("*.yaml")])


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_is_valid_and_its_names_are_known(file: Path) -> None:
    study = load_study(file)
    assert study.cells
    assert describe(study).startswith(f"{study.spec.name}: valid")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_finds_as_many_problems_as_it_needs(file: Path) -> None:
    study = load_study(file)
    task, training = build_task(study.spec.task, study.task), study.spec.training
    assert draw_problems(task, "train", training.steps * training.problems_per_step, seed=study.spec.seeds[0])
    assert draw_problems(task, "test", study.spec.evaluation.test_problems, seed=0)
    assert draw_problems(task, "validation", study.spec.evaluation.validation_problems, seed=0)


def test_studies_have_names_of_their_own() -> None:
    """They share a results folder, in which a study's name is its place."""
    names = [load_study(file).spec.name for file in STUDIES]
    assert len(set(names)) == len(names)


def test_the_grid_is_eight_models_by_seven_algorithms_by_three_seeds() -> None:
    grid = load_study(CONFIG / "studies" / "grid.yaml")
    assert (len(grid.models), len(grid.spec.seeds)) == (8, 3)
    assert len({cell.algorithm for cell in grid.rl_cells}) == 7
    assert len(grid.rl_cells) == 168
    assert set(grid.algorithms) - {cell.algorithm for cell in grid.rl_cells} == {"sft", "dist"}
    assert set(grid.controls) == {"frozen"}


def test_the_learning_rates_of_the_grid_are_among_those_compared_on_validation() -> None:
    grid, rates = (load_study(CONFIG / "studies" / f"{name}.yaml") for name in ("grid", "rates"))
    assert set(grid.algorithms) == set(rates.spec.algorithms)
    for name, values in rates.spec.sweep.items():
        assert rates.algorithms[name] == grid.algorithms[name]
        assert grid.algorithms[name].learning_rate in values["learning_rate"]
    assert rates.spec.training.steps == grid.spec.training.steps

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlstride.errors import RequestError
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder, teacher_folder
from rlstride.study.study import Study
from rlstride.training.launch import cell_settings, train_cell


def study_with(folder: Path, default_study_file: str, teacher: str, grpo_rate: float = 1e-4) -> Study:
    """The default study's task, one model that is a folder, GRPO, and a control distilled from ``teacher``."""
    folder.mkdir(exist_ok=True)
    algorithms: dict[str, Any] = {
        "grpo": {"trainer": "grpo", "learning_rate": grpo_rate},
        "dist": {"trainer": "distillation", "learning_rate": 1e-4, "teacher": teacher},
    }
    study = {
        "name": "taught",
        "task": "chain",
        "models": ["published"],
        "algorithms": ["grpo"],
        "controls": ["dist"],
        "training": {"steps": 5, "keep_every": 2},
        "results": str(folder / "results"),
        "define": {
            "models": {"published": {"source": str(folder)}},
            "tasks": {"chain": load_study(default_study_file).task.model_dump()},
            "algorithms": algorithms,
        },
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return load_study(file)


def test_an_algorithm_of_the_study_teaches_with_the_last_step_of_the_same_model_and_seed(
    tmp_path: Path, default_study_file: str
) -> None:
    study = study_with(tmp_path, default_study_file, "grpo")
    cell = study.cell("published/dist/0")
    assert str(study.teacher(cell)) == "published/grpo/0"
    expected = tmp_path / "results/taught/published/grpo/seed0/trajectory/step_000005"
    assert teacher_folder(study, cell) == expected
    assert teacher_folder(study, study.cell("published/grpo/0")) is None


def test_a_folder_can_teach(tmp_path: Path, default_study_file: str) -> None:
    study = study_with(tmp_path, default_study_file, str(tmp_path))
    cell = study.cell("published/dist/0")
    assert study.teacher(cell) is None
    assert teacher_folder(study, cell) == tmp_path


def test_a_teacher_that_is_nothing_is_named_with_what_was_meant(tmp_path: Path, default_study_file: str) -> None:
    with pytest.raises(RequestError, match=r"dist: teacher: 'grop' is neither an algorithm .* did you mean 'grpo'"):
        study_with(tmp_path, default_study_file, "grop")


def test_a_distilled_run_does_not_teach(tmp_path: Path, default_study_file: str) -> None:
    with pytest.raises(RequestError, match="dist: teacher: 'dist' is distilled itself"):
        study_with(tmp_path, default_study_file, "dist")


def test_a_distilled_cells_settings_hold_those_of_its_teacher(tmp_path: Path, default_study_file: str) -> None:
    slow = study_with(tmp_path / "slow", default_study_file, "grpo", grpo_rate=1e-4)
    fast = study_with(tmp_path / "fast", default_study_file, "grpo", grpo_rate=2e-4)
    settings = [cell_settings(study, study.cell("published/dist/0")) for study in (slow, fast)]
    assert settings[0]["algorithm"] == settings[1]["algorithm"]
    assert settings[0]["teacher"] != settings[1]["teacher"]


def test_a_missing_teacher_is_named_with_the_command_that_trains_it(tmp_path: Path, default_study_file: str) -> None:
    study = study_with(tmp_path, default_study_file, "grpo")
    base = base_folder(study, "published")
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"rlstride train --study .* --cell published/grpo/0 --out .*/trajectory"):
        train_cell(study, study.cell("published/dist/0"), tmp_path / "out", tmp_path / "state")

"""A study of a random model on a task of rows, and all that a user does with one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlstride.cli import main
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder


def study_on(root: Path, task: Mapping[str, Any], model: Mapping[str, Any], *algorithms: str, steps: int = 2) -> Path:
    """The file of a study of two completions each for two problems a step.

    Args:
        root: receives the file and the results.
        task: its entry of tasks.yaml, called sums.
        model: its entry of models.yaml, called mine.
        algorithms: trainers, each at its defaults.
        steps: of each run.
    """
    batch = {"problems_per_step": 2, "completions_per_problem": 2}
    study = {
        "name": "sums",
        "task": "sums",
        "models": ["mine"],
        "algorithms": list(algorithms),
        "controls": [],
        # The weights are random: nothing is right.
        "training": {"steps": steps, "keep_every": 1, **batch, "reward_patience": None},
        "evaluation": {"decodings": {"t1.0": {"temperature": 1.0}}, "test_problems": 6, "validation_problems": 4},
        "results": str(root / "results"),
        "define": {
            "tasks": {"sums": dict(task)},
            "models": {"mine": dict(model)},
            "algorithms": {name: {"trainer": name, "learning_rate": 1e-3} for name in algorithms},
        },
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def pretrain(path: Path) -> Path:
    """Makes the base of a study's model; returns its folder."""
    base = base_folder(load_study(path), "mine")
    assert main(["pretrain", "--study", str(path), "--model", "mine", "--out", str(base)]) == 0
    return base


def scores_of_runs(path: Path, *algorithms: str) -> pd.DataFrame:
    """Trains with each of them, and scores the last one's kept steps."""
    pretrain(path)
    for algorithm in algorithms:
        out = path.parent / algorithm / "trajectory"
        assert main(["train", "--study", str(path), "--cell", f"mine/{algorithm}/0", "--out", str(out)]) == 0
    cell, scores = f"mine/{algorithms[-1]}/0", path.parent / "scores.parquet"
    assert main(["evaluate", str(out), "--study", str(path), "--cell", cell, "--out", str(scores)]) == 0
    return pd.read_parquet(scores)

"""What the verified stride saves: steps, seconds and tokens to the accuracy at which plain RL ends.

Trains each algorithm of a study with strides and without (``NAME-stride`` and ``NAME``), scores every kept step on the
test problems, and compares the two runs of a model and a seed. Accuracy over steps is made monotone (isotonic
regression, both runs alike) and read off by linear interpolation; the goal is plain RL's at its last step. Seconds are
the training's, searches inside, scoring outside. What is done already is not done again.

    python benchmarks/stride.py [--study config/studies/stride.yaml] [--seeds 0,1] [--models NAME,NAME]
        [--out FILE.csv] [--document]

Targets, of the chain task: at most 0.67 of the steps and 0.8 of the seconds in the median cell; of all cells: at most
1.1 of the steps in the worst tenth, and never a lower end beyond noise.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from document import machine, markdown, write_section
from sklearn.isotonic import IsotonicRegression

from rlstride.evaluation.intervals import paired_difference_interval
from rlstride.evaluation.score import score_on_study
from rlstride.evaluation.tables import problems_file
from rlstride.study.load import Cell, Study, load_study
from rlstride.study.paths import CellPaths, base_folder, study_paths
from rlstride.training.launch import train_cell
from rlstride.trajectory.manifest import read_manifest
from rlstride.zoo.bases import make_base

SUFFIX = "-stride"
STEPS_TARGET, SECONDS_TARGET, WORST_TARGET = 0.67, 0.8, 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config/studies/stride.yaml"), metavar="FILE")
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,NAME")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], metavar="N,N")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md from the tables in --out")
    options = parser.parse_args()
    study = load_study(options.study)
    rows = []
    for seed in options.seeds or study.spec.seeds:
        for model in options.models or study.spec.models:
            for algorithm in [name for name in study.algorithms if name + SUFFIX in study.algorithms]:
                plain, stride = Cell(model, algorithm, seed), Cell(model, algorithm + SUFFIX, seed)
                for cell in (plain, stride):
                    make(study, cell)
                rows.append(compare(study, plain, stride))
                print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
                if options.out:
                    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")
    table = pd.DataFrame(rows)
    print(summary(table).to_string(index=False))
    if options.document:
        write_document(study, table)


def make(study: Study, cell: Cell) -> None:
    """The cell's trajectory, and the accuracy of its kept steps on test problems."""
    paths = study_paths(study).cell(cell)
    base = base_folder(study, cell.model)
    if not (base / "config.json").is_file():
        make_base(study, cell.model, base)
    if not paths.manifest.is_file():
        train_cell(study, cell, paths.trajectory, paths.training_state)
    if not progress_file(paths).is_file():
        headline = study.spec.evaluation.headline
        score_on_study(study, cell, [str(paths.trajectory)], "test", progress_file(paths), decodings=[headline])


def progress_file(paths: CellPaths) -> Path:
    """Where the accuracy of every kept step on the test problems is written."""
    return paths.root / "progress.parquet"


def compare(study: Study, plain: Cell, stride: Cell) -> dict[str, Any]:
    """One row: what each run took to plain RL's last accuracy."""
    one, other = progress(study, plain), progress(study, stride)
    goal = float(one["accuracy"].iloc[-1])
    taken, striding = reach(one, goal), reach(other, goal)
    difference = last_difference(study, plain, stride)
    searched = ledger(study, stride)
    return {
        "task": study.spec.task,
        "model": plain.model,
        "algorithm": plain.algorithm,
        "seed": plain.seed,
        "learning_rate": study.algorithm(plain).learning_rate,
        "stride_learning_rate": study.algorithm(stride).learning_rate,
        "base": one["measured"].iloc[0],
        "goal": goal,
        "steps": taken["step"],
        "stride_steps": striding["step"],
        **{f"{name}_ratio": striding[column] / taken[column] for name, column in RATIOS.items()},
        **{f"steps_ratio_{share:g}": early_ratio(one, other, share) for share in EARLIER},
        "end": one["measured"].iloc[-1],
        "stride_end": other["measured"].iloc[-1],
        **difference.columns("end_difference"),
        "jumps": searched["jumps"],
        "jumps_taken_back": searched["jumps_taken_back"],
        "searches": searched["searches"],
        "search_share": searched["search_seconds"] / other["seconds"].iloc[-1],
    }


def early_ratio(plain: pd.DataFrame, stride: pd.DataFrame, share: float) -> float:
    """Steps to a share of plain RL's gain, striding over plain."""
    base, end = plain["measured"].iloc[0], plain["accuracy"].iloc[-1]
    goal = base + share * (end - base)
    return reach(stride, goal)["step"] / reach(plain, goal)["step"]


EARLIER = (0.5, 0.8, 0.9)  # of the gain: where in a run the steps are saved
RATIOS = {"steps": "step", "seconds": "seconds", "tokens": "tokens"}


def progress(study: Study, cell: Cell) -> pd.DataFrame:
    """Accuracy (as measured, and made monotone), seconds and tokens at every kept step, the base first."""
    paths = study_paths(study).cell(cell)
    table = pd.read_parquet(progress_file(paths)).sort_values("step")
    manifest = read_manifest(paths.trajectory)
    cost = {record.step: (record.seconds, record.tokens) for record in manifest.steps} | {0: (0.0, 0)}
    monotone = IsotonicRegression().fit_transform(table["step"], table["accuracy"])
    return pd.DataFrame(
        {
            "step": table["step"].astype(float),
            "measured": table["accuracy"],
            "accuracy": monotone,
            "seconds": [cost[step][0] for step in table["step"]],
            "tokens": [cost[step][1] for step in table["step"]],
        }
    ).reset_index(drop=True)


def reach(run: pd.DataFrame, goal: float) -> dict[str, float]:
    """Where a monotone run first reaches an accuracy: step, seconds, tokens; infinite where it never does."""
    accuracy = run["accuracy"].to_numpy()
    if accuracy[-1] < goal - 1e-12:
        return dict.fromkeys(RATIOS.values(), math.inf)
    after = int(np.argmax(accuracy >= goal - 1e-12))
    if after == 0:
        return dict.fromkeys(RATIOS.values(), 0.0)
    share = (goal - accuracy[after - 1]) / (accuracy[after] - accuracy[after - 1])
    return {
        column: float(run[column].iloc[after - 1] + share * (run[column].iloc[after] - run[column].iloc[after - 1]))
        for column in RATIOS.values()
    }


def last_difference(study: Study, plain: Cell, stride: Cell) -> Any:
    """The striding run's accuracy at the last step less the plain one's, on the same problems, with its interval."""
    scores = []
    for cell in (stride, plain):
        table = pd.read_parquet(problems_file(progress_file(study_paths(study).cell(cell)))).sort_values("problem")
        scores.append(table[table["step"] == table["step"].max()]["score"])
    return paired_difference_interval(*scores)


def ledger(study: Study, cell: Cell) -> dict[str, Any]:
    """What the searches of a finished run did and cost."""
    lines = (study_paths(study).cell(cell).ledger / "train.jsonl").read_text(encoding="utf-8").splitlines()
    entry: dict[str, Any] = json.loads(lines[-1])
    return entry


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The targets and what came out, for each task."""
    rows = []
    for task, found in table.groupby("task"):
        lower = found["end_difference_high"] < 0
        rows.append(
            {
                "task": task,
                "cells": len(found),
                "steps, median": found["steps_ratio"].median(),
                "seconds, median": found["seconds_ratio"].median(),
                "tokens, median": found["tokens_ratio"].median(),
                **{f"steps to {share:g} of the gain": found[f"steps_ratio_{share:g}"].median() for share in EARLIER},
                "steps, 90th percentile": found["steps_ratio"].quantile(0.9, interpolation="higher"),
                "lower at the end": int(lower.sum()),
                "of the time on searches": found["search_share"].median(),
            }
        )
    return pd.DataFrame(rows)


def write_document(study: Study, table: pd.DataFrame) -> None:
    """Writes the section of docs/benchmarks.md."""
    columns = ["task", "model", "algorithm", "seed", "base", "goal", "steps_ratio", "seconds_ratio", "end_difference"]
    shown = rounded(table[columns], "base", "goal", "steps_ratio", "seconds_ratio")
    shown = shown.assign(end_difference=table["end_difference"].map("{:+.3f}".format))
    totals = summary(table)
    totals = rounded(totals, *[name for name in totals.columns[2:] if name != "lower at the end"])
    write_section(
        "stride",
        f"""
## Verified stride

{machine()} `python benchmarks/stride.py`: share of plain RL's steps, seconds and tokens that a striding run takes to
plain RL's last accuracy, on test problems. Targets: {STEPS_TARGET} of the steps and {SECONDS_TARGET} of the seconds in
the median cell of the chain task, at most {WORST_TARGET} of the steps in the worst tenth of all cells, none lower at
the end beyond noise (95 %, paired over problems). `inf`: not reached in as many steps.

{markdown(totals)}

{markdown(shown)}
""",
    )


def rounded(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Columns at two digits, as text."""
    return table.assign(**{name: table[name].map("{:.2f}".format) for name in columns})


if __name__ == "__main__":
    sys.exit(main())

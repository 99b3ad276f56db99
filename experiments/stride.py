"""What the verified stride saves: steps, seconds and tokens to the accuracy at which plain RL ends.

Trains each algorithm of a study with strides and without (``NAME-stride`` and ``NAME``), scores every kept step on the
test problems, and compares the two runs of a model and a seed as rlstride.tables.strides does; the pipeline does the
same with validation problems (tables/strides.csv). What is done already is not done again.

    python experiments/stride.py [--study config/studies/stride.yaml] [--seeds 0,1] [--models NAME,NAME]
        [--out FILE.csv] [--progress FILE.csv] [--document]

A plain run whose learning rate was not tuned flatters every accelerator. Such studies are reported apart, beside what
the tuned rate alone would save (--tuned takes what --progress wrote for the tuned study):

    python experiments/stride.py --study config/studies/stride-untuned.yaml
        --tuned results/published/stride-progress.csv [--out FILE.csv] [--document]

Targets, of the chain task: at most 0.67 of the steps and 0.8 of the seconds in the median cell; of all cells: at most
1.1 of the steps in the worst tenth, and never a lower end beyond noise.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from rlstride.arrays import Floats
from rlstride.evaluation.score import score_on_study
from rlstride.evaluation.score_tables import problems_file
from rlstride.ledger import read_ledger
from rlstride.study.load import load_study
from rlstride.study.paths import CellPaths, base_folder, study_paths
from rlstride.study.stride_pairs import StridePair, stride_pairs_of
from rlstride.study.study import Cell, Study
from rlstride.tables.columns import EARLIER
from rlstride.tables.strides import UNITS, compare, compare_ends, progress, searches, summarised
from rlstride.training.launch import train_cell
from rlstride.trajectory.manifest import read_manifest
from rlstride.zoo.bases import make_base

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from document import machine, markdown, write_section

STEPS_TARGET, SECONDS_TARGET, WORST_TARGET = 0.67, 0.8, 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config/studies/stride.yaml"), metavar="FILE")
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,NAME")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], metavar="N,N")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--progress", type=Path, metavar="FILE.csv", help="accuracy and cost of every kept step")
    parser.add_argument("--tuned", type=Path, metavar="FILE.csv", help="--progress of the same cells at tuned rates")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    study = load_study(options.study)
    seeds, models = options.seeds or study.spec.seeds, options.models or study.spec.models
    asked = [twins for twins in stride_pairs_of(study) if twins.plain.seed in seeds and twins.plain.model in models]
    tuned = plain_runs(options.tuned) if options.tuned else None
    if missing := [str(twins.plain) for twins in asked if tuned is not None and twins.plain not in tuned]:
        parser.error(f"--tuned has no plain run of {', '.join(missing)}")
    rows, curves = [], []
    for twins in sorted(asked, key=lambda twins: seeds.index(twins.plain.seed)):  # a whole seed before the next
        for cell in twins.cells:
            make(study, cell)
        plain, striding = (progress_of(study, cell) for cell in twins.cells)
        rows.append(compare_twins(study, twins, plain, striding))
        if tuned is not None:
            rows[-1] |= compare_with_tuned(plain, tuned[twins.plain])
        curves += [labelled(twins, plain, False), labelled(twins, striding, True)]
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
        if options.out:
            pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")
        if options.progress:
            pd.concat(curves).to_csv(options.progress, index=False, float_format="%.6g")
    table = pd.DataFrame(rows)
    print(summary(table).to_string(index=False))
    if options.document and tuned is None:
        write_document(table)
    elif options.document:
        write_untuned_document(table)


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


def progress_of(study: Study, cell: Cell) -> pd.DataFrame:
    """Accuracy and cost of a run's kept steps."""
    paths = study_paths(study).cell(cell)
    return progress(pd.read_parquet(progress_file(paths)), read_manifest(paths.trajectory))


def labelled(twins: StridePair, curve: pd.DataFrame, stride: bool) -> pd.DataFrame:
    about = {"model": twins.plain.model, "algorithm": twins.plain.algorithm, "seed": twins.plain.seed, "stride": stride}
    return curve.assign(**about)[[*about, *curve.columns]]


def compare_twins(study: Study, twins: StridePair, plain: pd.DataFrame, striding: pd.DataFrame) -> dict[str, Any]:
    """One row: what each run took to plain RL's last accuracy."""
    paths = [study_paths(study).cell(cell) for cell in twins.cells]
    return {
        "task": study.spec.task,
        "model": twins.plain.model,
        "algorithm": twins.plain.algorithm,
        "seed": twins.plain.seed,
        "learning_rate": study.algorithm(twins.plain).learning_rate,
        "stride_learning_rate": study.algorithm(twins.striding).learning_rate,
        **compare(plain, striding),
        **compare_ends(*(last_scores(path) for path in paths)),
        **searches(read_ledger(paths[1].ledger), float(striding["seconds"].iloc[-1])),
    }


def plain_runs(file: Path) -> dict[Cell, pd.DataFrame]:
    """The progress of every plain run in a table of many, see :func:`labelled`."""
    table = pd.read_csv(file)
    runs = table[~table["stride"]].groupby(["model", "algorithm", "seed"])
    return {Cell(model, algorithm, seed): run for (model, algorithm, seed), run in runs}


def compare_with_tuned(plain: pd.DataFrame, tuned: pd.DataFrame) -> dict[str, float]:
    """What plain RL at a tuned rate takes to the last accuracy of plain RL at another one: no jump is in this."""
    found = compare(plain, tuned)
    ratios = {f"tuned_{name}": found[name] for name in ("steps_ratio", "tokens_ratio")}
    return ratios | {"tuned_end": float(tuned["accuracy"].iloc[-1])}


def last_scores(paths: CellPaths) -> Floats:
    """A run's scores at its last step, (problems,)."""
    table = pd.read_parquet(problems_file(progress_file(paths))).sort_values("problem")
    return table.loc[table["step"] == table["step"].max(), "score"].to_numpy(float)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The targets and what came out, for each task."""
    rows = []
    for task, found in table.groupby("task"):
        told = summarised(found)
        rows.append(
            {
                "task": task,
                "cells": told["pairs"],
                **{f"{unit}, median": told[f"{unit}_ratio"] for unit in UNITS},
                **{f"steps to {share:g} of the gain": told[f"steps_ratio_{share:g}"] for share in EARLIER},
                "steps, 90th percentile": told["steps_ratio_worst"],
                "lower at the end": told["lower"],
                "of the time on searches": told["search_share"],
            }
        )
    return pd.DataFrame(rows)


def write_document(table: pd.DataFrame) -> None:
    """Writes the section of docs/benchmarks.md."""
    write_section(
        "stride",
        f"""
## Verified stride

{machine()} `python experiments/stride.py`: share of plain RL's steps, seconds and tokens that a striding run takes to
plain RL's last accuracy, on test problems. Targets: {STEPS_TARGET} of the steps and {SECONDS_TARGET} of the seconds in
the median cell of the chain task, at most {WORST_TARGET} of the steps in the worst tenth of all cells, none lower at
the end beyond noise (95 %, paired over problems). `inf`: not reached in as many steps.

{markdown(shown_summary(table))}

{markdown(shown_cells(table))}
""",
    )


def write_untuned_document(table: pd.DataFrame) -> None:
    """Writes the section of docs/benchmarks.md on learning rates that were not tuned."""
    tuned = table[["tuned_steps_ratio", "tuned_tokens_ratio"]].median()
    write_section(
        "stride_untuned",
        f"""
## Verified stride, learning rates not tuned

{machine()} `python experiments/stride.py --study config/studies/stride-untuned.yaml --tuned
results/published/stride-progress.csv`: as for the [verified stride](#verified-stride) above, but plain RL has the
learning rate that the striding run has too, instead of its own best one. This flatters striding, as it would any
accelerator, and no target is about it: plain RL at its tuned rate, without a jump, takes
{tuned["tuned_steps_ratio"]:.2f} of the steps and {tuned["tuned_tokens_ratio"]:.2f} of the tokens to the same accuracy
(medians; `tuned_steps_ratio`).

{markdown(shown_summary(table))}

{markdown(shown_cells(table, "tuned_steps_ratio"))}
""",
        script="stride",
    )


def shown_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as it stands in the document."""
    totals = summary(table)
    return rounded(totals, *[name for name in totals.columns[2:] if name != "lower at the end"])


def shown_cells(table: pd.DataFrame, *more: str) -> pd.DataFrame:
    """A row for each pair of runs as it stands in the document, with further columns."""
    numbers = ["base", "goal", "steps_ratio", "seconds_ratio", *more]
    shown = rounded(table[["task", "model", "algorithm", "seed", *numbers]], *numbers)
    return shown.assign(end_difference=table["end_difference"].map("{:+.3f}".format))


def rounded(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Columns at two digits, as text."""
    return table.assign(**{name: table[name].map("{:.2f}".format) for name in columns})


if __name__ == "__main__":
    sys.exit(main())

"""By which rule a jump is confirmed: validation accuracy at four points of plain and striding runs.

.venv/bin/snakemake --profile profiles/local --configfile config/studies/stride-levels.yaml   # some 15 minutes
.venv/bin/python experiments/stride_levels.py --out results/published/stride-levels.csv

The published table also has runs of a rule that is no longer there (each search at a fixed level), and of countdown.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from rlstride.ledger import last_done
from rlstride.study.load import load_study
from rlstride.study.stride_pairs import stride_of
from rlstride.study.study import Cell
from rlstride.tables.results import StudyResults

STUDY = Path("config/studies/stride-levels.yaml")
POINTS = (0.25, 0.5, 0.75, 1.0)  # of the steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=STUDY, metavar="FILE")
    parser.add_argument("--results", type=Path, metavar="DIR", help="results/{study} (default: the study's)")
    parser.add_argument("--out", type=Path, default=Path("stride-levels.csv"), metavar="FILE.csv")
    options = parser.parse_args()
    study = load_study(options.study)
    results = StudyResults(options.results or Path(study.spec.results) / study.spec.name, study)
    table = pd.DataFrame([row_of(results, cell) for cell in study.cells])
    table.to_csv(options.out, index=False, float_format="%.4g")
    print(table.to_string(index=False))


def row_of(results: StudyResults, cell: Cell) -> dict[str, Any]:
    """One run: its rule, its jumps, its accuracy."""
    study, measured = results.study, results.of(cell)
    stride, told = stride_of(study.algorithm(cell)), last_done(measured.ledger, "train") or {}
    scored = measured.validation.query("decoding == @results.headline").set_index("step")["accuracy"]
    return {
        "task": study.spec.task,
        "model": cell.model,
        "algorithm": cell.algorithm.partition("-")[0],
        "seed": cell.seed,
        "rule": "plain RL" if stride is None else f"alpha-investing, {stride.significance:g}",
        "jumps": None if stride is None else told.get("jumps"),
        "jumps_taken_back": None if stride is None else told.get("jumps_taken_back"),
        **{f"accuracy_{point:g}": scored.asof(point * study.spec.training.steps) for point in POINTS},
    }


if __name__ == "__main__":
    main()

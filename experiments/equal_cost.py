"""What a striding run has reached for what a predicted model costs: the share of plain RL's gain, at equal total cost.

A predicted model costs its window's RL, the accuracies that its method reads, its fit and what it tries on validation
problems; a striding run its steps and searches. Both as shares of what the plain run of the same study cost, in wall-
clock and in tokens, so that studies run at different times compare. The striding run is read off at that share, its
accuracy made monotone, at its end where the share is beyond it. Gains are shares of the plain run's own gain, each on
its study's test problems.

Cells whose seconds are left out of the table are compared in tokens alone.

    python experiments/equal_cost.py [--extrapolation CSV] [--progress CSV] [--out FILE.csv] [--document]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from document import markdown, write_section

PUBLISHED = Path("results/published")
METHODS = ["last", "linear", "linear_validated", "relex", "alpharl", "next", "next_validated", "logits_validated"]
UNITS = {"seconds": "seconds_speed_up", "tokens": "tokens_speed_up"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--extrapolation", type=Path, default=PUBLISHED / "extrapolation.csv", metavar="FILE.csv")
    parser.add_argument("--progress", type=Path, default=PUBLISHED / "stride-progress.csv", metavar="FILE.csv")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    table = compare(pd.read_csv(options.extrapolation), pd.read_csv(options.progress))
    print(summary(table).to_string())
    if options.out:
        table.to_csv(options.out, index=False, float_format="%.4g")
    if options.document:
        write_document(table)


def compare(predicted: pd.DataFrame, progress: pd.DataFrame) -> pd.DataFrame:
    """One row for each predicted model (t1.0), unit of cost, and cell that both tables have."""
    rows = []
    for key, runs in progress.groupby(["model", "algorithm", "seed"]):
        plain, striding = (runs[runs["stride"] == stride].sort_values("step") for stride in (False, True))
        base, goal = plain["accuracy"].iloc[0], plain["monotone"].iloc[-1]
        cell = (predicted["model"] == key[0]) & (predicted["algorithm"] == key[1]) & (predicted["seed"] == key[2])
        models = predicted[cell & (predicted["decoding"] == "t1.0") & predicted["method"].isin(METHODS)]
        for (_, model), (unit, speed_up) in ((m, u) for m in models.iterrows() for u in UNITS.items()):
            if np.isnan(model[speed_up]):  # seconds of a machine that was too busy to tell
                continue
            cost = 1 / model[speed_up]
            reached = np.interp(cost * plain[unit].iloc[-1], striding[unit], striding["monotone"])
            rows.append(
                dict(zip(("model", "algorithm", "seed"), key, strict=True))
                | {"method": model["method"], "window": model["window"], "unit": unit, "cost": cost}
                | {"gain": model["gain"], "stride_gain": (reached - base) / (goal - base)}
            )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each method and unit: the cells in which striding has more of the gain at most windows, and how much more."""
    better = table.assign(better=table["stride_gain"] > table["gain"], more=table["stride_gain"] - table["gain"])
    by_cell = better.groupby(["unit", "method", "model", "algorithm", "seed"], as_index=False)
    cells = by_cell.agg(better=("better", "mean"), more=("more", "mean"), cost=("cost", "mean"))
    cells["won"] = cells["better"] > 0.5
    groups = cells.groupby(["unit", "method"], sort=False)
    found = groups.agg(cells=("won", "size"), won=("won", "sum"), more=("more", "mean"))
    at = table[np.isclose(table["window"], 0.4)].groupby(["unit", "method"])[["cost", "gain", "stride_gain"]].mean()
    return found.join(at.add_suffix(" at 0.4"))


def write_document(table: pd.DataFrame) -> None:
    """Writes the section of docs/benchmarks.md."""
    shown = summary(table).reset_index()
    for name in shown.columns[4:]:
        shown[name] = shown[name].map("{:+.2f}".format if name == "more" else "{:.2f}".format)
    write_section(
        "equal_cost",
        f"""
## Striding and predicted models at equal cost

`python experiments/equal_cost.py`, from `extrapolation.csv` and `stride-progress.csv` in `results/published`: cells in
which the striding run has more of plain RL's gain at most of the windows 0.05 to 0.5 (`won`), how much more on average
(`more`), and for the window 0.4 what the predicted model costs, as a share of the plain run, its gain, and the striding
run's at that cost.

{markdown(shown)}
""",
    )


if __name__ == "__main__":
    main()

"""What claims are judged by: problem scores, spectra, the linear fit and costs of an algorithm's cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rlstride.arrays import Floats
from rlstride.dynamics.quantities import SUMMARISED
from rlstride.spectra.gaussian import gaussian_share
from rlstride.stats.intervals import Interval
from rlstride.stats.pooling import Statistic, having, pooled_interval
from rlstride.study.study import Cell, Study
from rlstride.tables.costs import window_costs
from rlstride.tables.results import SHARPEST_BASE, STRONGEST_NULL, CellResults, StudyResults

PARAMETERS = "parameters"  # among what rounding makes of a cell: each tensor's, over their mean
_ROUNDING_NAMES = {"run": {"": "", "expected_": "expected_"}, "random": {"random_": ""}}  # of columns' prefixes


@dataclass(frozen=True)
class Evidence:
    """The cells of one algorithm (or of several), read from their tables. What was not run is simply absent."""

    study: Study
    cells: list[Cell]
    scores: dict[Cell, dict[str, Floats]]  # test scores by variant, (problems,), at the headline decoding
    shares: dict[Cell, dict[str, Floats]]  # of the last update's matrices: "share" and the Gaussian "null", (matrices,)
    dynamics: dict[Cell, dict[str, Floats]]  # the quantities of dynamics.parquet, (matrices,), as leading() names them
    costs: dict[float, dict[Cell, dict[str, Floats]]]  # by window: steps and seconds of the full and the shortened run
    rounding: dict[Cell, dict[str, Floats]]  # as of_rounding_table() names them: of matrices, or of all tensors

    def having(self, *variants: str) -> dict[Cell, dict[str, Floats]]:
        """The scores of the cells in which all these variants were evaluated."""
        return having(self.scores, *variants)

    def interval(self, statistic: Statistic) -> Interval:
        """A statistic over the cells that have all its variants."""
        return pooled_interval(self.having(*statistic.variants), statistic)

    def of_dynamics(self, statistic: Statistic) -> Interval:
        """A statistic of the movement's quantities over the cells that have them all."""
        return pooled_interval(having(self.dynamics, *statistic.variants), statistic)

    def having_rounding(self, *names: str) -> dict[Cell, dict[str, Floats]]:
        """The rounding of the cells in which all of these were measured."""
        return having(self.rounding, *names)

    def of_rounding(self, statistic: Statistic) -> Interval:
        """A statistic of what rounding makes of the last measured update, over the cells that have all its parts."""
        return pooled_interval(self.having_rounding(*statistic.variants), statistic)


def gather(results: StudyResults, cells: Sequence[Cell]) -> Evidence:
    """Reads the evidence of some of a study's cells.

    Args:
        results: the study's.
        cells: usually those of one algorithm.
    """
    found = {cell: results.of(cell) for cell in cells}
    windows = results.study.spec.extrapolation.windows
    return Evidence(
        study=results.study,
        cells=list(cells),
        scores={cell: scores | _nulls(found[cell]) for cell, scores in results.last_scores(list(cells)).items()},
        shares={cell: shares for cell, each in found.items() if (shares := _shares(each.paths.spectra))},
        dynamics={cell: movement for cell, each in found.items() if (movement := leading(each.dynamics))},
        costs={
            window: {cell: costs for cell, each in found.items() if (costs := _costs(each, window, results.headline))}
            for window in windows
        },
        rounding={cell: shown for cell, each in found.items() if (shown := of_rounding_table(each.rounding))},
    )


def _nulls(results: CellResults) -> dict[str, Floats]:
    found = {SHARPEST_BASE: results.sharpest_base(), STRONGEST_NULL: results.strongest_null()}
    return {name: null[-1] for name, null in found.items() if null is not None}


def of_rounding_table(table: pd.DataFrame) -> dict[str, Floats]:
    """What rounding makes of a cell's last measured update, by name and dtype; empty where nothing was measured.

    Args:
        table: the rows of rounding.parquet, or none.

    Returns:
        ``share_fp32``, ``expected_share_bf16_grid``, ``random_share_bf16``, ...: s1 / |D|F of each matrix in scope, as
        shown, as expected, of a random update; ``sparsity_`` likewise: of each tensor the entries within 1e-5, counted
        in the unit of ``parameters``, so that their ratio over tensors is the share of all parameters.
    """
    if table.empty:
        return {}
    last = table[(table["step"] == table["step"].max()) & (table["factor"] == 1)].sort_values("module")
    shown = last.loc[last["in_scope"], "share_1"].notna().groupby(last["module"]).all()
    with_share = last["module"].isin(shown.index[shown])  # of what did not move, or not in files, none
    found: dict[str, Floats] = {}
    for (update, dtype), rows in last.groupby(["update", "dtype"]):
        inside, weight = rows[with_share[rows.index]], rows["size"] / rows["size"].mean()
        for name, prefix in _ROUNDING_NAMES.get(str(update), {}).items():
            if prefix + "share_1" in rows:
                found[f"{name}share_{dtype}"] = inside[prefix + "share_1"].to_numpy(dtype=float)
                found[f"{name}sparsity_{dtype}"] = (weight * rows[prefix + "unchanged_1e-05"]).to_numpy(dtype=float)
                found[PARAMETERS] = weight.to_numpy(dtype=float)
    return {name: values for name, values in found.items() if len(values) and np.isfinite(values).all()}


def _shares(file: Path) -> dict[str, Floats]:
    if not file.is_file():
        return {}
    frame = pd.read_parquet(file, columns=["step", "rows", "cols", "in_scope", "share_1"])
    frame = frame[frame["in_scope"] & (frame["step"] == frame["step"].max()) & frame["share_1"].notna()]
    if frame.empty:
        return {}
    null = gaussian_share(frame["rows"].to_numpy(dtype=float), frame["cols"].to_numpy(dtype=float))
    return {"share": frame["share_1"].to_numpy(dtype=float), "null": null}


def leading(dynamics: pd.DataFrame, rank: int = 1) -> dict[str, Floats]:
    """A cell's movement by quantity, one value for each in-scope matrix: those of one singular direction, and of the
    whole update under ``whole_`` and the quantity's name.

    Matrices that lack any of them (one that never moved has none) are left out; empty where nothing was measured.

    Args:
        dynamics: the rows of dynamics.parquet, or none.
    """
    if dynamics.empty:
        return {}
    frame = dynamics[["module", "rank", "step", "quantity", "value"]]
    frame = frame[(frame["step"] == 0) & frame["quantity"].isin(SUMMARISED) & frame["rank"].isin([0, rank])]
    names = np.where(frame["rank"] == 0, "whole_", "") + frame["quantity"]
    wide = frame.assign(quantity=names).pivot(index="module", columns="quantity", values="value")
    found = wide.dropna(axis=1, how="all").dropna()
    return {str(name): found[name].to_numpy(dtype=float) for name in found} if len(found) else {}


def _costs(results: CellResults, window: float, decoding: str) -> dict[str, Floats]:
    """Steps and seconds of the full run, and of RL up to the window's end with the looks and the fit AlphaRL needs."""
    found = window_costs(results, window, "alpharl", decoding)
    kept = [f"{part}_{unit}" for unit in ("steps", "seconds") for part in ("full", "window")]
    whole = kept if all(name in found for name in kept) else kept[:2]
    return {name: np.array([found[name]]) for name in whole if name in found}


def format_interval(interval: Interval) -> str:
    """An interval as text: 0.842 [0.801, 0.880]."""
    if np.isnan(interval.value):
        return "not run"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

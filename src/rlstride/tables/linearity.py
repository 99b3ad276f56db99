"""How linear the movement is, pooled over all RL runs, over each algorithm and over each model."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from rlstride.arrays import Floats
from rlstride.dynamics.quantities import OF_ACCURACY, OF_THE_STEP, RANKS
from rlstride.stats.pooling import Statistic, difference, having, mean_of, pooled_interval, relative
from rlstride.study.study import Cell
from rlstride.tables.evidence import leading
from rlstride.tables.recovery import pools
from rlstride.tables.results import StudyResults
from rlstride.tables.specs import TABLES

_WHOLE = "whole_"
# What claims rest on: differences are taken matrix by matrix.
_COMPARED: dict[str, Statistic] = {
    "r2_in_sample_over_random_walk": difference("r2_in_sample", "r2_random_walk"),
    "forecast_error_over_persistence": relative("forecast_error", "forecast_error_persistence"),
}
_COMPARED_STEPS = ("step_r2_in_sample", "step_r2_later", "step_error_later", "trajectory_share_1")


def linearity_table(results: StudyResults) -> pd.DataFrame:
    """One row for each pool of cells, rank and quantity of dynamics.parquet.

    Returns:
        pool (``rl``, ``algorithm``, ``model`` or ``supervised``), of (its name), quantity, rank (0: the whole update),
        cells, value, and its 95 % interval over cells and matrices. Ranks 2 to 5 of all RL runs alone. ``_over_`` in a
        quantity's name: a difference to, or a share of, what follows, taken matrix by matrix.
    """
    study, rows = results.study, list[dict[str, Any]]()
    tables = {cell: results.of(cell).dynamics for cell in study.cells}
    for rank in range(1, RANKS + 1):
        found = {cell: leading(table, rank) for cell, table in tables.items()}
        for pool, name, cells in pools(study):
            measured = {cell: found[cell] for cell in cells if found[cell]}
            if measured and (rank == 1 or pool == "rl"):
                rows += [{"pool": pool, "of": name} | row for row in _rows(measured, rank)]
    return pd.DataFrame(rows, columns=list(TABLES["linearity"].columns))


def _rows(cells: Mapping[Cell, dict[str, Floats]], rank: int) -> Iterator[dict[str, Any]]:
    prefixes = ("", _WHOLE) if rank == 1 else ("",)
    for prefix in prefixes:
        for quantity, statistic in _statistics(prefix):
            found = having(cells, *statistic.variants)
            if found:
                interval = pooled_interval(found, statistic)
                row = {"quantity": quantity, "rank": 0 if prefix else rank, "cells": len(found)}
                yield row | {"value": interval.value, "low": interval.low, "high": interval.high}


def _statistics(prefix: str) -> Iterator[tuple[str, Statistic]]:
    for quantity in OF_THE_STEP if prefix else (*OF_ACCURACY, *OF_THE_STEP):
        yield quantity, mean_of(prefix + quantity)
    if not prefix:
        yield from _COMPARED.items()
    for quantity in _COMPARED_STEPS:
        statistic = difference(prefix + quantity, f"{prefix}{quantity}_random_walk")
        yield f"{quantity}_over_random_walk", statistic

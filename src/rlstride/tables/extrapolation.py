"""What predicted models keep of a run and what they save: accuracy beside its floor, and every cost inside."""

import numpy as np
import pandas as pd

from rlstride.arrays import Floats
from rlstride.config.methods import METHODS
from rlstride.config.variants import window_variant
from rlstride.stats.intervals import (
    Interval,
    columns_of,
    paired_difference_interval,
    ratio_interval,
    recovered_gain_interval,
)
from rlstride.stats.pooling import difference, having, mean_of, pooled_interval, recovered_gain, relative
from rlstride.study.plan import asked_predictions, why_not, window_steps
from rlstride.study.study import Cell, Study
from rlstride.tables import costs
from rlstride.tables.columns import UNITS
from rlstride.tables.recovery import pools
from rlstride.tables.results import CellResults, StudyResults, finite
from rlstride.tables.specs import TABLES

_LAST = "last"


def extrapolation_rows(results: CellResults) -> pd.DataFrame:
    """One row for each window, method and decoding of a cell that was scored.

    Returns:
        window, method; ``oracle``, whether the method was told the full run's accuracy; step, the window's last kept
        one; decoding, n, samples; ``accuracy`` with its 95 % interval; ``last``, ``base`` and ``full``, the accuracies
        of the window's last step (the floor), of the base and of the full run; ``relative``, the share of the full
        run's accuracy, ``gain``, that of its gain over the base, and ``over_last``, the gain over the window's last
        step, each with a paired bootstrap interval over problems; what it cost (:func:`costs.window_costs`) and saved,
        full run over shortened run. A method that the window is too short for has one row without a decoding, which
        says so in ``not_applicable``. An oracle's costs are without those of its oracle, which is the full run.
    """
    table, study = results.accuracy, results.study
    if table.empty or study is None:  # without a study nothing tells which methods and windows were asked for
        return pd.DataFrame()
    rows = []
    for window, method in asked(study):
        about = {"window": window, "method": method, "oracle": METHODS[method].oracle}
        reason = why_not(method, window, len(window_steps(study.spec.training, window)))
        if reason:
            rows.append({**about, "not_applicable": reason})
            continue
        spent = costs.window_costs(results, window, method, study.spec.evaluation.headline)
        variant = window_variant(window, method)
        for found in table[table["variant"] == variant].to_dict("records"):
            known = ("step", "decoding", "n", "samples", "accuracy", "low", "high")
            others = beside(results.last_scores(found["decoding"]), floor_of(window, method), variant)
            rows.append({**about, **{name: found[name] for name in known}, **others, **spent, **costs.speed_ups(spent)})
    return finite(pd.DataFrame(rows).reindex(columns=list(TABLES["extrapolation"].columns)))


def pooled_extrapolation(results: StudyResults) -> pd.DataFrame:
    """One row for each pool of cells, window and method, at the headline decoding.

    Returns:
        pool, of, decoding, cells as in recovery.csv; window, method, oracle; then with 95 % intervals as there:
        ``accuracy``, ``relative``, ``gain`` and ``over_last`` as in extrapolation.csv, and the speed-ups, the cells'
        mean cost of the full run over that of the shortened one: each run was timed once, so that an interval of
        seconds is the spread over cells.
    """
    study, decoding = results.study, results.headline
    scores = results.last_scores(study.cells)
    rows = []
    for window, method in asked(study):
        if why_not(method, window, len(window_steps(study.spec.training, window))):
            continue
        variant, last = window_variant(window, method), floor_of(window, method)
        scored = having(scores, variant, "base", "full")
        spent = {cell: _as_scores(costs.window_costs(results.of(cell), window, method, decoding)) for cell in scored}
        for pool, name, cells in pools(study):
            found = {cell: scored[cell] for cell in cells if cell in scored}
            if not found:
                continue
            row = {"pool": pool, "of": name, "window": window, "method": method, "oracle": METHODS[method].oracle}
            intervals = {
                "accuracy": pooled_interval(found, mean_of(variant)),
                "relative": pooled_interval(found, relative(variant)),
                "gain": pooled_interval(found, recovered_gain(variant)),
                "over_last": pooled_interval(having(found, last), difference(variant, last)),
            }
            intervals |= _speed_ups({cell: spent[cell] for cell in found})
            rows.append({**row, "decoding": decoding, "cells": len(found), **columns_of(intervals)})
    return finite(pd.DataFrame(rows))


def asked(study: Study) -> list[tuple[float, str]]:
    """The windows and methods that a study asks for, also those that are not applicable."""
    return asked_predictions(study.spec.extrapolation.methods, study.spec.extrapolation.windows)


def floor_of(window: float, method: str) -> str:
    """The variant of RL that stops where a window ends: what a method of it has to beat; of the whole run, the run."""
    return "full" if METHODS[method].whole_run else window_variant(window, _LAST)


def beside(scores: dict[str, Floats], floor: str, variant: str) -> dict[str, float]:
    """A predicted model beside the window's last step, the base and the full run, on the same problems.

    Args:
        scores: of a cell by variant, at one decoding.
        floor: the variant of RL that stops at the last step that the model's method saw.
        variant: the model's.

    Returns:
        ``last``, ``base`` and ``full``, the mean scores, and ``relative``, ``gain`` and ``over_last`` with their paired
        95 % intervals; what was not scored is missing.
    """
    own = scores.get(variant)
    last, base, full = (scores.get(name) for name in (floor, "base", "full"))
    means = {
        name: float(each.mean())
        for name, each in {"last": last, "base": base, "full": full}.items()
        if each is not None
    }
    intervals: dict[str, Interval] = {}
    if own is None:
        return means
    if full is not None:
        intervals["relative"] = ratio_interval(own, full)
    if full is not None and base is not None:
        intervals["gain"] = recovered_gain_interval(own, base, full)
    if last is not None:
        intervals["over_last"] = paired_difference_interval(own, last)
    return means | columns_of(intervals)


def _speed_ups(spent: dict[Cell, dict[str, Floats]]) -> dict[str, Interval]:
    return {
        f"{unit}_speed_up": pooled_interval(
            having(spent, f"full_{unit}", f"window_{unit}"), relative(f"full_{unit}", f"window_{unit}")
        )
        for unit in UNITS
    }


def _as_scores(spent: dict[str, float]) -> dict[str, Floats]:
    return {name: np.array([value]) for name, value in spent.items()}

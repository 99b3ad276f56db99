"""Figures of what predicted models keep of the gain: over the share of the run that was seen, and over its cost."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rlstride.evaluation.intervals import interval_columns
from rlstride.report import style
from rlstride.report.drawings import Drawing, Tables, select
from rlstride.study.load import Study

_LAST = "last"
_SHOWN = (-1.0, 1.4)  # a model that RL's update was overdone in can lose more than the base had
_ORACLE = " (told the full accuracy)"


def draw_gain_over_window(tables: Tables, study: Study) -> Drawing | None:
    """Share of the gain that each method keeps over the share of the RL steps that it saw, a panel for each method."""
    frame = _pooled(tables)
    frame = frame.assign(place=100 * frame["window"])
    return _by_method(frame, study, "window (% of the RL steps seen)")


def draw_gain_over_cost(tables: Tables, study: Study) -> Drawing | None:
    """The same over the seconds of the shortened run, every cost inside, in per cent of the full run's."""
    frame = _pooled(tables)
    frame = frame[frame["seconds_speed_up"].notna()]
    frame = frame.assign(place=100 / frame["seconds_speed_up"])
    return _by_method(frame, study, "wall-clock, all costs (% of the full run's)")


def _pooled(tables: Tables) -> pd.DataFrame:
    frame = tables["extrapolation-pooled"]
    return frame[(frame["pool"] == "rl") & frame["gain"].notna()]


def _by_method(frame: pd.DataFrame, study: Study, label: str) -> Drawing | None:
    if frame.empty:
        return None
    oracles = set(frame.loc[frame["oracle"].astype(bool), "method"])
    methods: list[str] = [name for name in study.spec.extrapolation.methods if name in set(frame["method"])]
    others = [name for name in methods if name != _LAST] or methods
    floor, look = select(frame, method=_LAST).sort_values("place"), style.series_of(["a method"])["a method"]
    figure, grid = style.panels([""], others, height=2.4)
    for (_, method), axes in grid.items():
        # From the base, which costs nothing, to the full run: a method has to lie above.
        stopped = [0.0, *floor["place"], 100.0], [0.0, *floor["gain"], 1.0]
        axes.plot(*stopped, label="RL that stops there", color=style.BLACK, linestyle="--", linewidth=1.2)
        rows = select(frame, method=method).sort_values("place")
        _with_intervals(axes, rows, look)
        axes.set_title(method + (_ORACLE if method in oracles else ""))
        style.reference_line(axes, 1, "full run", "-")
        style.reference_line(axes, 0, "base", ":")
        axes.set_ylim(*_SHOWN)
        axes.set_xlim(0, max(104.0, 1.08 * float(frame["place"].max())))
    style.label_outer(grid, label, "share of the gain kept")
    style.legend_below(figure, grid)
    columns = ["pool", "of", "window", "method", "oracle", "cells", "place", *interval_columns("gain")]
    return Drawing(figure, frame[columns])


def _with_intervals(axes: Axes, rows: pd.DataFrame, look: style.Series) -> None:
    value, low, high = (rows[column].to_numpy(float) for column in interval_columns("gain"))
    ends = np.nan_to_num(np.maximum([value - low, high - value], 0))  # without ends: the gain is not told from 0
    axes.errorbar(rows["place"], value, yerr=ends, label="predicted model", elinewidth=1.2, **look.line_kwargs())

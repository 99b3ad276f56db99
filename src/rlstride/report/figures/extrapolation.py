"""Figures of what predicted models keep of the gain: over the share of the run that was seen, and over its cost."""

from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rlstride.config.methods import METHODS, Family
from rlstride.report.figures import style
from rlstride.report.figures.drawing import (
    Drawing,
    Tables,
    accuracy_label,
    accuracy_references,
    by_model_or_algorithm,
    headline,
    select,
)
from rlstride.stats.intervals import interval_columns
from rlstride.study.study import Study

_LAST = "last"
_REFERENCES: dict[str, object] = {"full": "-", "base": ":"}
_SHOWN = (-1.0, 1.4)  # a model that RL's update was overdone in can lose more than the base had
_ORACLE = " (told the full accuracy)"
# Methods that are read against each other: a row of panels for each family, so that few lines share a panel.
FAMILIES = {
    family: [name for name, method in METHODS.items() if method.family == family]
    for family in get_args(Family)
    if family != "floor"
}


def draw_accuracy_over_window(tables: Tables, study: Study) -> Drawing | None:
    """Test accuracy over the share of the steps that was seen: a row of panels for each kind of method, a column for
    each model (each algorithm, of a single one), the window's last checkpoint in all of them.
    """
    frame = _of_windows(by_model_or_algorithm(tables["extrapolation-pooled"], study))
    frame = frame[frame["accuracy"].notna()]
    if frame.empty:
        return None
    frame = frame.assign(place=100 * frame["window"])
    found = set(frame["method"])
    kinds = {kind: [name for name in names if name in found] for kind, names in FAMILIES.items()}
    kinds = {kind: names for kind, names in kinds.items() if names} or {"": []}
    columns = [name for name in (*study.models, *study.algorithms) if name in set(frame["of"])]
    tests = headline(tables["accuracy"], study)
    tests = tests[tests["algorithm"].isin([cell.algorithm for cell in study.rl_cells])]
    places = sorted(frame["place"].unique())
    apart = min(1.0, 0.12 * float(np.diff(places).min(initial=np.inf)))  # keeps the intervals of one window apart
    figure, grid = style.panels(list(kinds), columns, height=2.3)
    for (kind, name), axes in grid.items():
        rows, methods = select(frame, of=name), kinds[kind]
        _line(axes, select(rows, method=_LAST), _LAST, style.Series(style.BLACK, "s", "--"), 0.0)
        for index, (method, look) in enumerate(style.series_of(methods).items()):
            beside = apart * (index - len(methods) // 2 + (index >= len(methods) // 2))  # the middle is last's
            _line(axes, select(rows, method=method), method, look, beside)
        accuracy_references(axes, tests[(tests["model"] == name) | (tests["algorithm"] == name)], _REFERENCES)
        axes.set_title(name if kind == next(iter(kinds)) else "")
        axes.set_ylim(0, 1.02)
        axes.set_xticks(places)
        if name == columns[-1] and methods:
            lines = [line for line in axes.lines if line.get_label() in methods]
            axes.legend(handles=lines, title=kind, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    style.label_outer(grid, "window (% of the RL steps seen)", accuracy_label(study, "test"))
    shared = [str(line.get_label()) for axes in grid.values() for line in axes.lines]
    style.legend_below(figure, grid, [label for label in shared if label == _LAST or label not in found])
    return Drawing(figure, frame[["pool", "of", "window", "method", "oracle", "cells", *interval_columns("accuracy")]])


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
    frame = _of_windows(tables["extrapolation-pooled"])
    return frame[(frame["pool"] == "rl") & frame["gain"].notna()]


def _of_windows(frame: pd.DataFrame) -> pd.DataFrame:
    """Without what sees the whole run, and so predicts nothing."""
    return frame[~frame["method"].isin([name for name, method in METHODS.items() if method.whole_run])]


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


def _line(axes: Axes, rows: pd.DataFrame, label: str, look: style.Series, beside: float) -> None:
    """A method's accuracies with their intervals, moved sideways."""
    rows = rows.sort_values("place")
    places = rows["place"].to_numpy(float) + beside
    axes.vlines(places, rows["accuracy_low"], rows["accuracy_high"], color=look.colour, linewidth=1.2)
    axes.plot(places, rows["accuracy"], label=label, **look.line_kwargs())


def _with_intervals(axes: Axes, rows: pd.DataFrame, look: style.Series) -> None:
    value, low, high = (rows[column].to_numpy(float) for column in interval_columns("gain"))
    ends = np.nan_to_num(np.maximum([value - low, high - value], 0))  # without ends: the gain is not told from 0
    axes.errorbar(rows["place"], value, yerr=ends, label="predicted model", elinewidth=1.2, **look.line_kwargs())

"""Figures of striding runs beside plain RL: accuracy over steps, and over the seconds that they took."""

from dataclasses import replace

import pandas as pd

from rlstride.report.figures import style
from rlstride.report.figures.drawing import Drawing, Tables, algorithms_of, models_of, select
from rlstride.study.study import Study

_MARGIN = 0.05  # of accuracy, below the lowest interval


def draw_stride_over_steps(tables: Tables, study: Study) -> Drawing | None:
    """Validation accuracy of striding and plain runs over RL steps, a panel for each algorithm and model."""
    return _side_by_side(tables, study, "step", "RL step")


def draw_stride_over_seconds(tables: Tables, study: Study) -> Drawing | None:
    """The same over the seconds of training, searches inside."""
    return _side_by_side(tables, study, "seconds", "wall-clock of the training (s), searches inside")


def _side_by_side(tables: Tables, study: Study, place: str, label: str) -> Drawing | None:
    frame = tables["stride-progress"].dropna(subset=[place, "accuracy"])
    if frame.empty:
        return None
    keys = ["model", "algorithm", "stride", "step"]
    # Seeds are of one run each: their mean, at the mean of what they took, in the envelope of their intervals.
    data = frame.groupby(keys, as_index=False).agg(
        seeds=("seed", "nunique"),
        seconds=("seconds", "mean"),
        tokens=("tokens", "mean"),
        accuracy=("accuracy", "mean"),
        low=("low", "min"),
        high=("high", "max"),
        monotone=("monotone", "mean"),
    )
    figure, grid = style.panels(algorithms_of(data, study), models_of(data, study), height=2.4, share_x=place == "step")
    strides = replace(style.series_of(["with strides"])["with strides"], marker="^")
    looks = {"plain RL": (False, style.Series(style.BLACK, "o", "--")), "with strides": (True, strides)}
    for (algorithm, model), axes in grid.items():
        cell = select(data, model=model, algorithm=algorithm)
        for name, (jumps, look) in looks.items():
            rows = select(cell, stride=jumps).sort_values("step")
            low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
            axes.fill_between(rows[place].to_numpy(float), low, high, color=look.colour, alpha=0.15, linewidth=0)
            axes.plot(rows[place], rows["accuracy"], label=name, **look.line_kwargs(len(rows)))
        goal = _goal(cell)
        if goal is not None:
            style.reference_line(axes, goal, "plain RL's last accuracy, made monotone", ":")
        axes.set_xlim(left=0)
        axes.set_ylim(float(data["low"].min()) - _MARGIN, 1.02)
    style.label_outer(grid, label, f"validation accuracy ({study.spec.evaluation.headline})")
    style.legend_below(figure, grid)
    return Drawing(figure, data)


def _goal(cell: pd.DataFrame) -> float | None:
    plain = select(cell, stride=False).sort_values("step")
    return float(plain["monotone"].iloc[-1]) if len(plain) else None

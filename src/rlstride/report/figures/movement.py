"""Figures of how the weights move: the linear fits beside their nulls, the angles, and flat pictures of the path."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from rlstride.report.figures import style
from rlstride.report.figures.drawing import Drawing, Tables, algorithms_of, models_of, select
from rlstride.study.study import Study

_FITS = {
    "r2_in_sample": "in sample",
    "q2_leave_one_out": "leave one out",
    "r2_random_walk": "random walk, in sample",
    "r2_permuted": "permuted accuracy, in sample",
    "r2_iid_noise": "noise, in sample",
}
_FORECASTS = {
    "step_error_later": "line in the step",
    "step_error_later_from_last": "on from the last, with the line's slope",
    "step_error_later_quadratic": "parabola in the step",
    "step_error_later_random_walk": "line, on a random walk",
    "forecast_error_over_persistence": "accuracy, from u",
}


def draw_linear_fits(tables: Tables, study: Study) -> Drawing | None:
    """R2 of accuracy on each singular direction beside its nulls; and errors on later steps, over persistence."""
    frame = tables["linearity"]
    frame = frame[(frame["pool"] == "rl") & frame["quantity"].isin([*_FITS, *_FORECASTS])]
    if frame.empty:
        return None
    figure, (fits, forecasts) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    _by_rank(fits, frame, _FITS)
    fits.set_ylabel(r"$R^2$ of accuracy on $\|D\|_F\, u$")
    fits.set_ylim(min(0.0, fits.get_ylim()[0]), 1.02)
    _by_rank(forecasts, frame, _FORECASTS)
    forecasts.axhline(1, color=style.GREY, linewidth=1.2, zorder=1)
    forecasts.set_ylabel("error on later steps / error of staying")
    forecasts.set_ylim(bottom=0)
    return Drawing(figure, frame)


def draw_angle_over_steps(tables: Tables, study: Study) -> Drawing | None:
    """Angle of the leading left singular vector to the last step's, mean over matrices and seeds."""
    frame = tables["movement"]
    frame = frame[(frame["rank"] == 1) & frame["angle_to_last_degrees"].notna()]
    if frame.empty:
        return None
    data = frame.groupby(["model", "algorithm", "step"], as_index=False).agg(
        angle_to_last_degrees=("angle_to_last_degrees", "mean")
    )
    models, algorithms = models_of(data, study), algorithms_of(data, study)
    looks = style.series_of(algorithms)
    figure, grid = style.panels([""], models)
    for (_, model), axes in grid.items():
        for algorithm in algorithms:
            rows = select(data, model=model, algorithm=algorithm).sort_values("step")
            axes.plot(
                rows["step"],
                rows["angle_to_last_degrees"],
                label=algorithm,
                **looks[algorithm].line_kwargs(len(rows)),
            )
        axes.set_ylim(0, 90)
    style.whole_steps(grid)
    style.label_outer(grid, "RL step", r"angle of $u_1$ to the last step's (degrees)")
    style.legend_below(figure, grid)
    return Drawing(figure, data)


def draw_pca_paths(tables: Tables, study: Study) -> Drawing | None:
    """The first two principal components of each run's weights, the base at the origin."""
    return _paths(tables, study, "pca", "principal component")


def draw_tsne_paths(tables: Tables, study: Study) -> Drawing | None:
    """t-SNE of each run's weights, the base at the origin."""
    return _paths(tables, study, "tsne", "t-SNE axis")


def _paths(tables: Tables, study: Study, name: str, label: str) -> Drawing | None:
    columns = [f"{name}_1", f"{name}_2"]
    frame = tables["movement"]
    frame = frame[(frame["rank"] == 0) & frame[columns[0]].notna()]
    if frame.empty:
        return None
    data = frame[["model", "algorithm", "seed", "step", *columns]].sort_values(["model", "algorithm", "seed", "step"])
    models, algorithms = models_of(data, study), algorithms_of(data, study)
    looks = style.series_of(algorithms)
    figure, grid = style.panels([""], models)
    for (_, model), axes in grid.items():
        for algorithm in algorithms:
            for _, rows in select(data, model=model, algorithm=algorithm).groupby("seed"):
                path = np.vstack([[0.0, 0.0], rows[columns].to_numpy(float)])
                axes.plot(path[:, 0], path[:, 1], label=algorithm, **looks[algorithm].line_kwargs(len(path)))
        axes.plot(0, 0, marker="s", color=style.BLACK, markersize=6, linestyle="none", label="base")
    style.label_outer(grid, f"{label} 1", f"{label} 2")
    style.legend_below(figure, grid)
    return Drawing(figure, data)


def _by_rank(axes: Axes, frame: pd.DataFrame, names: dict[str, str]) -> None:
    """One series for each quantity over the ranks, with its intervals; rank 0 is the whole update."""
    looks = style.series_of(list(names))
    ranks = sorted(frame.loc[frame["quantity"].isin(names), "rank"].unique())
    for index, (quantity, label) in enumerate(names.items()):
        rows = select(frame, quantity=quantity).sort_values("rank")
        if rows.empty:
            continue
        places = rows["rank"].to_numpy(float) + 0.08 * (index - (len(names) - 1) / 2)
        look = looks[quantity]
        axes.vlines(places, rows["low"], rows["high"], color=look.colour, linewidth=1.2)
        axes.plot(places, rows["value"], label=label, color=look.colour, marker=look.marker, linestyle="", markersize=5)
    axes.set_xticks(ranks, ["whole\nupdate" if rank == 0 else f"$u_{rank}$" for rank in ranks])
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))

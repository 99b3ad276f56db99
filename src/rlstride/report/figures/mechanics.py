"""Figures of what RL changes in what a model says: solution formats over the steps, and of edited models."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from rlstride.config.variants import IN_SCOPE_FULL
from rlstride.report.figures import style
from rlstride.report.figures.drawing import Drawing, Tables, algorithms_of, headline, models_of, select
from rlstride.study.study import Study

_FORMAT = "format_"
_SHOWN = ("base", "frozen", "full", IN_SCOPE_FULL, "rank_1", "rank_1_unscaled", "rank_1_random")
_HATCHES = ("", "//", "..", "\\\\")


def draw_formats_over_steps(tables: Tables, study: Study) -> Drawing | None:
    """Share of the validation completions in each solution format."""
    frame = headline(tables["validation"], study)
    frame = frame[frame["algorithm"].isin(study.algorithms)]
    formats = _formats(frame)
    if frame.empty or not formats:
        return None
    frame = frame.groupby(["model", "algorithm", "step"], as_index=False)[formats].mean()
    models, algorithms = models_of(frame, study), algorithms_of(frame, study)
    looks = style.series_of(formats)
    figure, grid = style.panels(algorithms, models, height=2.6)
    for (algorithm, model), axes in grid.items():
        rows = select(frame, model=model, algorithm=algorithm).sort_values("step")
        for name, look in looks.items():
            axes.plot(rows["step"], 100 * rows[name], label=name.removeprefix(_FORMAT), **look.line_kwargs(len(rows)))
        axes.set_ylim(-2, 102)
    style.whole_steps(grid)
    style.label_outer(grid, "RL step", "completions (%)")
    style.legend_below(figure, grid)
    return Drawing(figure, frame)


def draw_drift(tables: Tables, study: Study) -> Drawing | None:
    """KL to the base of kept steps and of edited models: every RL run, and their mean."""
    frame = tables["drift"]
    rl = {cell.algorithm for cell in study.rl_cells}
    frame = frame[frame["algorithm"].isin({*rl, "frozen"}) & (frame["step"] > 0) & frame["kl_to_base"].notna()]
    if frame.empty:
        return None
    steps = frame["variant"] == "checkpoint"
    frozen = frame["algorithm"] == "frozen"
    place = np.where(steps, "step " + frame["step"].astype(str), frame["variant"])
    frame = frame.assign(place=np.where(frozen, "frozen control, " + place, place))
    frame = frame[~frozen | steps]
    order = frame.groupby("place").agg(frozen=("algorithm", lambda names: "frozen" in set(names)), step=("step", "max"))
    order = order.assign(edit=[not name.split(", ")[-1].startswith("step ") for name in order.index])
    places = list(order.sort_values(["frozen", "edit", "step"]).index)
    data = frame[["model", "algorithm", "seed", "place", "kl_to_base", "kl_to_base_low", "kl_to_base_high"]]
    figure, axes = plt.subplots(figsize=(6.5, 1.2 + 0.34 * len(places)), layout="constrained")
    rng = np.random.default_rng(0)
    for height, name in enumerate(places):
        values = select(data, place=name)["kl_to_base"].to_numpy(float)
        scatter = height + rng.uniform(-0.2, 0.2, len(values))
        axes.plot(values, scatter, linestyle="", marker=".", markersize=4, color=style.GREY, alpha=0.6)
        axes.plot(values.mean(), height, marker="D", markersize=6, color=style.BLACK)
    axes.set_yticks(range(len(places)), places)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("KL to the base (nats per completion)")
    return Drawing(figure, data)


def draw_formats_by_variant(tables: Tables, study: Study) -> Drawing | None:
    """Shares of the solution formats in the test completions of base, full run and edited models, over all RL runs."""
    frame = headline(tables["accuracy"], study)
    rl = {cell.algorithm for cell in study.rl_cells}
    frame = frame[frame["algorithm"].isin(rl) & frame["variant"].isin(_SHOWN)]
    formats = _formats(frame)
    if not formats or IN_SCOPE_FULL not in set(frame["variant"]):
        return None
    data = frame.groupby("variant")[formats].mean().reindex([name for name in _SHOWN if name in set(frame["variant"])])
    looks = style.series_of(formats)
    figure, axes = plt.subplots(figsize=(6.5, 1.2 + 0.36 * len(data)), layout="constrained")
    left = np.zeros(len(data))
    for index, name in enumerate(formats):
        widths = 100 * data[name].to_numpy(float)
        axes.barh(
            range(len(data)), widths, left=left, color=looks[name].colour, label=name.removeprefix(_FORMAT),
            hatch=_HATCHES[index % len(_HATCHES)], edgecolor="white",
        )  # fmt: skip
        left += widths
    axes.set_yticks(range(len(data)), list(data.index))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"test completions (%), {study.spec.evaluation.headline}")
    figure.legend(loc="outside lower center", ncols=len(formats), fontsize=9)
    return Drawing(figure, data.reset_index())


def _formats(frame: pd.DataFrame) -> list[str]:
    """The columns with the shares of solution formats that were measured."""
    return [name for name in map(str, frame.columns) if name.startswith(_FORMAT) and frame[name].notna().any()]

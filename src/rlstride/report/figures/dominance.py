"""Figures of what RL reaches, and of how much of it a few ranks of its update carry."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlstride.config.variants import IN_SCOPE_FULL
from rlstride.evaluation.score_tables import at_last_step
from rlstride.report.figures import style
from rlstride.report.figures.drawing import (
    Drawing,
    Tables,
    accuracy_label,
    accuracy_references,
    algorithms_of,
    by_model_or_algorithm,
    headline,
    models_of,
    over_seeds,
    select,
)
from rlstride.report.figures.style import Series
from rlstride.spectra.gaussian import gaussian_share
from rlstride.stats.intervals import interval_columns
from rlstride.study.study import Study

_SHARES_SHOWN = (-0.25, 1.5)  # intervals of a gain near 0 reach far beyond
_KIND_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def draw_accuracy_over_steps(tables: Tables, study: Study) -> Drawing | None:
    """Validation accuracy of the kept steps, a panel for each model and a line for each algorithm."""
    frame = headline(tables["validation"], study)
    if frame.empty:
        return None
    frame = over_seeds(frame, ["model", "algorithm", "step"])
    models, algorithms = models_of(frame, study), algorithms_of(frame, study)
    looks = style.series_of(algorithms)
    tests = headline(tables["accuracy"], study)
    # Where the frozen control's steps were scored too it is a series of its own; else its last step is a line.
    references: dict[str, object] = {"base": ":"} if "frozen" in algorithms else {"base": ":", "frozen": (0, (6, 3))}
    figure, grid = style.panels([""], models)
    for (_, model), axes in grid.items():
        for algorithm in algorithms:
            _line(axes, select(frame, model=model, algorithm=algorithm), "step", algorithm, looks[algorithm], band=True)
        accuracy_references(axes, select(tests, model=model), references)
        axes.set_ylim(0, 1.02)
    style.whole_steps(grid)
    style.label_outer(grid, "RL step", accuracy_label(study, "validation"))
    style.legend_below(figure, grid)
    return Drawing(figure, frame)


def draw_accuracy_by_cell(tables: Tables, study: Study) -> Drawing | None:
    """Heat map of test accuracy: models by base, frozen control and every algorithm's trained model."""
    frame = tables["learning"]
    frame = frame[frame["decoding"] == study.spec.evaluation.headline]
    if frame.empty:
        return None
    models, algorithms = models_of(frame, study), algorithms_of(frame, study)
    trained = frame.pivot_table(index="model", columns="algorithm", values="full").reindex(columns=algorithms)
    references = frame.groupby("model")[["base", "frozen"]].mean()
    data = pd.concat([references, trained], axis=1).loc[models].dropna(axis=1, how="all")
    figure, grid = style.panels([""], [""], height=1.2 + 0.33 * len(models))
    figure.set_figwidth(max(5.0, 2.4 + 0.75 * len(data.columns)))
    (axes,) = grid.values()
    image = axes.imshow(data.to_numpy(float), aspect="auto", cmap="cividis", vmin=0, vmax=1)
    _annotate(axes, data.to_numpy(float), 0.5)
    axes.grid(visible=False)
    axes.set_xticks(range(len(data.columns)), list(data.columns), rotation=30, ha="right")
    axes.set_yticks(range(len(models)), models)
    figure.colorbar(image, ax=axes, label=accuracy_label(study, "test"), shrink=0.9)
    return Drawing(figure, data.reset_index())


def draw_accuracy_over_rank(tables: Tables, study: Study) -> Drawing | None:
    """Test accuracy of rank-k models, with the rank-1 controls, in-scope-full and full."""
    frame = headline(tables["accuracy"], study)
    ranks = sorted({int(name.split("_")[1]) for name in frame["variant"] if _is_rank(name)})
    places = {f"rank_{rank}": str(rank) for rank in ranks} | {IN_SCOPE_FULL: "all\nin scope", "full": "full\nrun"}
    wanted = [*places, "rank_1_unscaled", "rank_1_random", "base"]
    frame = over_seeds(frame[frame["variant"].isin(wanted)], ["model", "algorithm", "variant"])
    if not ranks or frame.empty:
        return None
    models, algorithms = models_of(frame, study), algorithms_of(frame, study)
    looks = style.series_of(algorithms)
    order = {name: position for position, name in enumerate(places)}
    figure, grid = style.panels([""], models)
    for (_, model), axes in grid.items():
        for index, algorithm in enumerate(algorithms):
            rows = select(frame, model=model, algorithm=algorithm)
            shift = 0.12 * (index - (len(algorithms) - 1) / 2)
            line = rows[rows["variant"].isin(places)]
            line = line.assign(place=line["variant"].map(order).astype(float) + shift).sort_values("place")
            _line(axes, line, "place", algorithm, looks[algorithm])
            for control, fill, name in (("rank_1_unscaled", "left", "unscaled"), ("rank_1_random", "none", "random")):
                point = rows[rows["variant"] == control].assign(place=shift + order.get("rank_1", 0))
                label = f"rank 1, {name} ({algorithm})"
                _control(axes, point, label, looks[algorithm], fill)
        accuracy_references(axes, select(frame, model=model), {"base": ":"})
        axes.set_xticks(list(order.values()), list(places.values()))
        axes.set_ylim(0, 1.02)
    style.label_outer(grid, "rank of the update kept (rescaled to its full norm)", accuracy_label(study, "test"))
    style.legend_below(figure, grid)
    return Drawing(figure, frame)


def draw_recovered_gain(tables: Tables, study: Study) -> Drawing | None:
    """What every edited model keeps of the gain: pooled over all RL runs, and over each supervised algorithm's."""
    frame = tables["recovery"]
    frame = frame[frame["pool"].isin(["rl", "supervised"]) & frame["gain"].notna()]
    if frame.empty:
        return None
    variants = [name for name in study.spec.ablation.variants if name in set(frame["variant"])]
    names = {name: "all RL runs" if name == "all" else str(name) for name in frame["of"].unique()}
    looks = style.series_of(list(names.values()))
    figure, axes = plt.subplots(figsize=(6.5, 1.2 + 0.26 * len(variants)), layout="constrained")
    for place, (of, label) in enumerate(names.items()):
        rows = frame[frame["of"] == of].set_index("variant").reindex(variants)
        heights = np.arange(len(variants)) + 0.22 * (place - (len(names) - 1) / 2)
        value = rows["gain"].to_numpy(float)
        ends = np.maximum([value - rows["gain_low"].to_numpy(float), rows["gain_high"].to_numpy(float) - value], 0)
        look = looks[label]
        axes.errorbar(
            value, heights, xerr=ends, label=label, color=look.colour, marker=look.marker, linestyle="", markersize=4
        )
    for reference in (0, 1):
        axes.axvline(reference, color=style.GREY, linewidth=0.8)
    axes.set_yticks(range(len(variants)), variants, fontsize=8)
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.set_xlabel("share of the gain over the base that is kept (0: the base, 1: the full run)")
    axes.legend(loc="upper left", fontsize=8)
    return Drawing(figure, frame)


def draw_gain_over_rank(tables: Tables, study: Study) -> Drawing | None:
    """Share of the in-scope gain that each rank keeps: a line for each model, or for each algorithm of a single one."""
    frame = by_model_or_algorithm(tables["recovery"], study)
    whole = frame[frame["variant"] == IN_SCOPE_FULL].set_index("of")["gain"]
    frame = frame[frame["variant"].map(_is_rank).astype(bool)]
    frame = frame.assign(rank=frame["variant"].str.removeprefix("rank_").astype(int), in_scope=frame["of"].map(whole))
    frame = frame[frame["gain"].notna() & (frame["in_scope"] > 0)].sort_values(["of", "rank"])
    if frame["rank"].nunique() < 2:
        return None
    shares = {column: frame[column] / frame["in_scope"] for column in interval_columns("gain")}
    data = frame[["pool", "of", "rank", "in_scope"]].assign(**shares)
    figure, axes = _shares_of(data, study, "rank", "gain", lambda ranks, place: ranks * 1.03**place)
    ranks = sorted(data["rank"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, list(map(str, ranks)))
    axes.set_xlabel("rank of the update kept (rescaled to its full norm)")
    axes.set_ylabel("share of the in-scope gain that is kept")
    return Drawing(figure, data)


def draw_rank_1_share_over_steps(tables: Tables, study: Study) -> Drawing | None:
    """The rank-1 model's share of the in-scope gain as RL goes on: by model, or by algorithm of a single model."""
    frame = by_model_or_algorithm(tables["ranks"], study)
    frame = frame[frame["gain_low"] > 0]
    if frame["step"].nunique() < 2:
        return None
    columns = ["pool", "of", "step", "full", *interval_columns("rank_1_share")]
    data = frame[columns].dropna().sort_values(["of", "step"])
    apart = 0.01 * float(data["step"].max())
    figure, axes = _shares_of(data, study, "step", "rank_1_share", lambda steps, place: steps + apart * place)
    axes.set_xlabel("RL step")
    axes.set_ylabel("rank 1's share of the in-scope gain")
    return Drawing(figure, data)


def draw_share_by_layer(tables: Tables, study: Study) -> Drawing | None:
    """Heat map of s1 / |D|F of the last update, layers by kinds, a panel for each model and algorithm."""
    frame = tables["spectra"]
    if frame.empty:
        return None
    frame = at_last_step(frame, "model", "algorithm", "seed")
    data = frame.groupby(["model", "algorithm", "layer", "kind", "rows", "cols"], as_index=False)["share_1"].mean()
    data = data.assign(gaussian=gaussian_share(data["rows"].to_numpy(float), data["cols"].to_numpy(float)))
    models, algorithms = models_of(data, study), algorithms_of(data, study)
    kinds = [kind for kind in _KIND_ORDER if kind in set(data["kind"])]
    kinds += sorted(set(data["kind"]) - set(kinds))
    layers = sorted(data["layer"].unique())
    figure, grid = style.panels(algorithms, models, height=0.9 + 0.3 * min(len(layers), 12))
    low, high = float(data["share_1"].min()), float(data["share_1"].max())
    image = None
    for (algorithm, model), axes in grid.items():
        rows = select(data, model=model, algorithm=algorithm)
        table = rows.pivot_table(index="layer", columns="kind", values="share_1").reindex(index=layers, columns=kinds)
        image = axes.imshow(table.to_numpy(float), aspect="auto", cmap="cividis", vmin=low, vmax=high, origin="lower")
        if len(layers) <= 12:
            _annotate(axes, table.to_numpy(float), (low + high) / 2)
        axes.grid(visible=False)
        axes.set_xticks(range(len(kinds)), [kind.removesuffix("_proj") for kind in kinds])
        axes.set_yticks(range(len(layers)) if len(layers) <= 12 else range(0, len(layers), 4))
    style.label_outer(grid, "matrix", "layer")
    if image is not None:
        figure.colorbar(image, ax=list(grid.values()), label=r"$s_1 / \|D\|_F$", shrink=0.9)
    return Drawing(figure, data)


def draw_share_over_steps(tables: Tables, study: Study) -> Drawing | None:
    """Median s1 / |D|F over the in-scope matrices at each kept step, with the middle half of them."""
    frame = tables["spectra"]
    if frame.empty:
        return None
    frame = frame.assign(gaussian=gaussian_share(frame["rows"].to_numpy(float), frame["cols"].to_numpy(float)))
    groups = frame.groupby(["model", "algorithm", "step"], as_index=False)
    data = groups.agg(
        accuracy=("share_1", "median"),
        low=("share_1", lambda shares: shares.quantile(0.25)),
        high=("share_1", lambda shares: shares.quantile(0.75)),
        gaussian=("gaussian", "median"),
    )
    models, algorithms = models_of(data, study), algorithms_of(data, study)
    looks = style.series_of(algorithms)
    figure, grid = style.panels([""], models)
    for (_, model), axes in grid.items():
        for algorithm in algorithms:
            rows = select(data, model=model, algorithm=algorithm)
            _line(axes, rows, "step", algorithm, looks[algorithm], band=True)
        style.reference_line(axes, float(select(data, model=model)["gaussian"].iloc[0]), "Gaussian update", ":")
        axes.set_ylim(0, 1.02)
    style.whole_steps(grid)
    style.label_outer(grid, "RL step", r"$s_1 / \|D\|_F$, median over matrices")
    style.legend_below(figure, grid)
    return Drawing(
        figure, data.rename(columns={"accuracy": "share_1_median", "low": "quartile_1", "high": "quartile_3"})
    )


def _shares_of(
    data: pd.DataFrame, study: Study, x: str, share: str, beside: Callable[[pd.Series, float], pd.Series]
) -> tuple[Figure, Axes]:
    """Shares of a gain over ``x`` with their intervals, a line for each ``of``.

    Args:
        beside: moves the x of a line, by its place from the middle one, so that intervals do not hide each other.
    """
    value, low, high = interval_columns(share)
    names = [name for name in (*study.models, *study.algorithms) if name in set(data["of"])]
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for index, (name, look) in enumerate(style.series_of(names).items()):
        rows = data[data["of"] == name]
        places = beside(rows[x], index - (len(names) - 1) / 2)
        axes.vlines(places, rows[low], rows[high], color=look.colour, linewidth=1)
        axes.plot(places, rows[value], label=name, **look.line_kwargs())
    for reference in (0, 1):
        axes.axhline(reference, color=style.GREY, linewidth=0.8)
    axes.set_ylim(*_SHARES_SHOWN)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure, axes


def _is_rank(name: str) -> bool:
    return name.startswith("rank_") and name.removeprefix("rank_").isdigit()


def _line(axes: Axes, rows: pd.DataFrame, x: str, label: str, look: Series, *, band: bool = False) -> None:
    """A series with its intervals: a band over many points, bars over few."""
    if rows.empty:
        return
    rows = rows.sort_values(x)
    places, values = rows[x].to_numpy(float), rows["accuracy"].to_numpy(float)
    low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
    if band:
        axes.fill_between(places, low, high, color=look.colour, alpha=0.18, linewidth=0)
    else:
        axes.vlines(places, low, high, color=look.colour, linewidth=1.4)
    axes.plot(places, values, label=label, **look.line_kwargs(len(rows) if band else 0))


def _control(axes: Axes, point: pd.DataFrame, label: str, look: Series, fill: str) -> None:
    """A control beside the series: hollow or half-filled, with its interval, and no line."""
    if point.empty:
        return
    place, value = float(point["place"].iloc[0]), float(point["accuracy"].iloc[0])
    axes.vlines(place, float(point["low"].iloc[0]), float(point["high"].iloc[0]), color=look.colour, linewidth=1.0)
    axes.plot(
        [place], [value], linestyle="none", marker=look.marker, color=look.colour, fillstyle=fill,
        markerfacecoloralt="white", markersize=7, label=label,
    )  # fmt: skip


def _annotate(axes: Axes, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], middle: float) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="black" if value > middle else "white"
            )

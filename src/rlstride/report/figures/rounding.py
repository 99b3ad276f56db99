"""Figures of what bfloat16 files hide of updates, and of accuracy over the factor on them."""

from collections.abc import Callable

import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from rlstride.claims import published
from rlstride.config.variants import IN_SCOPE_FULL, AblationVariant, parse_ablation
from rlstride.evaluation.score_tables import at_last_step
from rlstride.report.figures import style
from rlstride.report.figures.drawing import (
    Drawing,
    Tables,
    accuracy_label,
    accuracy_references,
    algorithms_of,
    headline,
    models_of,
    over_seeds,
    select,
)
from rlstride.study.study import Study

_RL = [share for name, share in published.NORM_SHARES.items() if name not in ("sft", "distillation")]
_PANELS = {  # title: column of rounding.csv, lower and upper end of what is published
    "norm share, sum of s1 / sum of |D|F": ("share_sum", min(_RL), max(_RL)),
    "parameters that changed by at most 1e-5": (
        "unchanged_1e-05",
        min(published.SPARSITIES.values()) / 100,
        max(published.SPARSITIES.values()) / 100,
    ),
}
_SHOWN = {"fp32": "float32", "bf16": "both sides rounded to bfloat16", "bf16_grid": "bfloat16, base on its grid"}
_WHOLE = "whole update"
_CURVES: dict[str, Callable[[AblationVariant], bool]] = {
    _WHOLE: lambda edit: edit.rank is None and edit.scope == "all",
    "rank 1, the update's norm": lambda edit: _is_rank_1(edit) and edit.rescale == "frobenius",
    "rank 1, its own norm": lambda edit: _is_rank_1(edit) and edit.rescale == "none",
    "whole update in scope, rank 1's norm": lambda edit: edit.norm_of == 1,
}


def draw_rounding(tables: Tables, study: Study) -> Drawing | None:
    """Norm share and sparsity of the runs' updates over |D|/|W|, in float32 and in bfloat16, with what is expected."""
    frame = tables["rounding"]
    keys = ["model", "algorithm", "seed", "step", "update", "factor"]
    own = frame[frame["dtype"] == "fp32"].set_index(keys)["relative"].rename("size")
    frame = frame.join(own, on=keys)
    frame = frame[(frame["update"] == "run") & (frame["size"] > 0)].sort_values("size")
    if frame.empty:
        return None
    figure, grid = style.panels([""], list(_PANELS))
    looks = style.series_of(list(_SHOWN.values()))
    for (_, title), axes in grid.items():
        column, low, high = _PANELS[title]
        axes.axhspan(low, high, color=style.GREY, alpha=0.25, linewidth=0, label="published (bfloat16 checkpoints)")
        for dtype, name in _SHOWN.items():
            rows, look = select(frame, dtype=dtype), looks[name]
            axes.plot(rows["size"], rows[column], label=name, **look.line_kwargs() | {"linestyle": "none"})
            if dtype != "fp32":
                label = f"expected: {name}"
                axes.plot(rows["size"], rows[f"expected_{column}"], color=look.colour, linestyle=look.line, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0, 1.02)
    style.label_outer(grid, "|D|F / |W|F of the update in float32", "share")
    style.legend_below(figure, grid)
    columns = [*keys, "dtype", "size", "share_sum", "expected_share_sum", "unchanged_1e-05", "expected_unchanged_1e-05"]
    return Drawing(figure, frame[columns])


def draw_accuracy_over_factor(tables: Tables, study: Study) -> Drawing | None:
    """Test accuracy over the factor on the update, a panel for each model and RL algorithm, mean over seeds.

    How far a run went depends on its rate, so that a mean over algorithms would hide where one went too far.
    """
    frame = headline(tables["accuracy"], study)
    frame = frame[frame["algorithm"].isin([cell.algorithm for cell in study.rl_cells])]
    if frame.empty:
        return None
    whose = ["model", "algorithm"]
    frame = over_seeds(at_last_step(frame, *whose, "seed", "variant"), [*whose, "variant"])
    placed = [frame.assign(curve=curve, factor=_factors(frame["variant"], curve)) for curve in _CURVES]
    curves = pd.concat(placed, ignore_index=True).dropna(subset="factor").sort_values(["curve", *whose, "factor"])
    if curves.empty:
        return None
    looks = style.series_of(list(_CURVES))
    pairs = [(model, name) for model in models_of(curves, study) for name in algorithms_of(curves, study)]
    panels = {f"{model}, {name}": {"model": model, "algorithm": name} for model, name in pairs}
    figure, grid = style.panels([""], list(panels))
    for (_, title), axes in grid.items():
        for curve, look in looks.items():
            rows = select(curves, **panels[title], curve=curve)
            if len(rows):
                axes.vlines(rows["factor"], rows["low"], rows["high"], color=look.colour, linewidth=1.2)
                line = {} if len(rows) > 2 else {"linestyle": "none"}  # between base and one factor nothing is known
                axes.plot(rows["factor"], rows["accuracy"], label=curve, **look.line_kwargs() | line)
        accuracy_references(axes, select(frame, **panels[title]), {"base": ":", "full": "--"})
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, None)
    style.label_outer(grid, "factor on the update (1: as the curve is called)", accuracy_label(study, "test"))
    style.legend_below(figure, grid)
    return Drawing(figure, curves[[*whose, "curve", "factor", "variant", "accuracy", "low", "high", "seeds"]])


def _factors(variants: "pd.Series[str]", curve: str) -> "pd.Series[float]":
    """The factor of each variant that is on a curve, the base's 0; NaN of the others."""

    def factor(name: str) -> float | None:
        if name == "base":
            return 0.0
        if name == "full":
            return 1.0 if curve == _WHOLE else None
        try:
            edit = parse_ablation(name)
        except ValueError:
            return None
        plain = edit.source == "stored" and edit.directions == "true" and name != IN_SCOPE_FULL
        return edit.scale if plain and _CURVES[curve](edit) else None

    return variants.map(factor).astype(float)


def _is_rank_1(edit: AblationVariant) -> bool:
    return edit.rank == 1 and edit.first == 1 and edit.scope == "linear"

"""How much of RL's effect edited models keep, pooled over all RL runs, over each algorithm and over each model."""

from collections.abc import Iterator

import pandas as pd

from rlstride.arrays import Floats
from rlstride.config.algorithms import PolicyGradient
from rlstride.stats.intervals import columns_of
from rlstride.stats.pooling import difference, having, mean_of, pooled_interval, recovered_gain, relative
from rlstride.study.study import Cell, Study
from rlstride.tables.results import StudyResults

_CONTROL = "rank_1_random"


def recovery_table(results: StudyResults) -> pd.DataFrame:
    """One row for each pool of cells and edited model or null, at the headline decoding and the runs' last step.

    Returns:
        pool (``rl``, ``algorithm``, ``model`` or ``supervised``), of (its name), variant, decoding, cells; then with
        95 % intervals for new problems and new models (of one model: new algorithms): ``accuracy``; ``relative``, the
        share of the full run's accuracy; ``gain``, the share of its gain over the base; ``over_random``, accuracy less
        that of the random rank-1 update with the full update's norm. A model's pool has its RL runs alone.
    """
    study, decoding = results.study, results.headline
    scores = results.last_scores(study.cells)
    rows = []
    for pool, name, cells in pools(study):
        for variant in [*study.spec.ablation.variants, *study.spec.nulls.asked]:
            found = having({cell: scores[cell] for cell in cells}, variant, "base", "full")
            if found:
                row = {"pool": pool, "of": name, "variant": variant, "decoding": decoding, "cells": len(found)}
                rows.append(row | _measured(variant, found))
    return pd.DataFrame(rows)


def pools(study: Study) -> Iterator[tuple[str, str, list[Cell]]]:
    """What a study's cells are pooled over: the kind of pool, its name, its cells."""
    rl = [cell for cell in study.cells if isinstance(study.algorithm(cell), PolicyGradient)]
    yield "rl", "all", rl
    for algorithm in study.algorithms:
        cells = [cell for cell in study.cells if cell.algorithm == algorithm]
        yield ("algorithm" if cells and cells[0] in rl else "supervised"), algorithm, cells
    for model in study.models:
        yield "model", model, [cell for cell in rl if cell.model == model]


def _measured(variant: str, cells: dict[Cell, dict[str, Floats]]) -> dict[str, float]:
    intervals = {
        "accuracy": pooled_interval(cells, mean_of(variant)),
        "relative": pooled_interval(cells, relative(variant)),
        "gain": pooled_interval(cells, recovered_gain(variant)),
        "over_random": pooled_interval(having(cells, _CONTROL), difference(variant, _CONTROL)),
    }
    return columns_of(intervals)

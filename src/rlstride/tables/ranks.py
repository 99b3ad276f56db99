"""How many ranks a gain needs: the smallest scored rank that keeps nine tenths of what any edit in scope can keep."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rlstride.arrays import Floats
from rlstride.config.variants import IN_SCOPE_FULL, parse_ablation
from rlstride.stats.intervals import Interval, columns_of
from rlstride.stats.pooling import difference, having, mean_of, pooled_interval, recovered_gain
from rlstride.study.plan import edited_steps, edits_of_step
from rlstride.study.study import Cell
from rlstride.tables.recovery import pools
from rlstride.tables.results import StudyResults

SHARE = 0.9


def ranks_table(results: StudyResults) -> pd.DataFrame:
    """One row for each pool of cells and edited step, at the headline decoding.

    Returns:
        pool, of, decoding, cells as in recovery.csv; step; ranks_to: the largest rank that was scored there; then with
        95 % intervals: ``base``, accuracy; ``full``, that of the run at the step; ``gain``, full less base;
        ``in_scope_gain``, the share of it that the whole in-scope update keeps; ``rank_1_share``, the rank-1 model's
        share of the in-scope gain; ``rank_needed``, the smallest scored rank with nine tenths of the in-scope gain,
        twice ``ranks_to`` where none has.
    """
    study, decoding = results.study, results.headline
    rows: list[dict[str, Any]] = []
    for step in edited_steps(study.spec):
        ranks = plain_ranks(edits_of_step(study.spec, step))
        if not ranks:
            continue
        needed = ("base", "full", IN_SCOPE_FULL, *(f"rank_{rank}" for rank in ranks))
        scores = {cell: results.of(cell).scores_at(step, decoding) for cell in study.cells}
        for pool, name, cells in pools(study):
            found = having({cell: scores[cell] for cell in cells}, *needed)
            if found:
                row = {"pool": pool, "of": name, "decoding": decoding, "cells": len(found), "step": step}
                rows.append(row | {"ranks_to": ranks[-1]} | _measured(found, ranks))
    return pd.DataFrame(rows)


def plain_ranks(variants: Sequence[str]) -> list[int]:
    """The k of the plain rank-k models, ascending; none without rank 1 and the whole in-scope update."""
    edits = [parse_ablation(name) for name in variants]
    ranks = sorted(edit.rank for edit in edits if edit.rank is not None and edit.name == f"rank_{edit.rank}")
    return ranks if IN_SCOPE_FULL in variants and ranks[:1] == [1] else []


def rank_needed(cells: Mapping[Cell, Mapping[str, Floats]], ranks: Sequence[int]) -> Interval:
    """The smallest rank whose model keeps :data:`SHARE` of the in-scope gain; twice the largest where none does.

    Its ends are the smallest rank whose share may reach that much, and the smallest whose share surely does, by the
    95 % interval of each share: unbounded where the in-scope update keeps no gain for certain.
    """
    shares = [pooled_interval(cells, recovered_gain(f"rank_{rank}", full=IN_SCOPE_FULL)) for rank in ranks]
    if not all(math.isfinite(end) for share in shares for end in (share.low, share.high)):
        return Interval(_first(ranks, [share.value for share in shares]), float("-inf"), float("inf"))
    value, high, low = (_first(ranks, [getattr(share, end) for share in shares]) for end in ("value", "low", "high"))
    return Interval(value, low, high)


def _first(ranks: Sequence[int], shares: Sequence[float]) -> float:
    return float(next((rank for rank, share in zip(ranks, shares, strict=True) if share >= SHARE), 2 * ranks[-1]))


def _measured(cells: Mapping[Cell, Mapping[str, Floats]], ranks: Sequence[int]) -> dict[str, float]:
    statistics = {
        "base": mean_of("base"),
        "full": mean_of("full"),
        "gain": difference("full", "base"),
        "in_scope_gain": recovered_gain(IN_SCOPE_FULL),
        "rank_1_share": recovered_gain("rank_1", full=IN_SCOPE_FULL),
    }
    intervals = {name: pooled_interval(cells, statistic) for name, statistic in statistics.items()}
    intervals["rank_needed"] = rank_needed(cells, ranks)
    return columns_of(intervals)

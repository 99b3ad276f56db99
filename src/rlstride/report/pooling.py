"""Accuracies pooled over the cells of an algorithm, and the intervals of anything that is computed from them.

One cell has the BCa intervals of rlstride.evaluation.intervals. For several, the bootstrap draws cells, and in each of
them problems (or, for spectra, matrices). All variants of a cell were scored on the same problems, and all cells of a
study on the same ones, so a draw takes the same problems everywhere: differences and ratios of variants are paired, and
what makes a problem hard for every model is not averaged away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rlstride.evaluation.intervals import (
    Interval,
    mean_interval,
    paired_difference_interval,
    ratio_interval,
    recovered_gain_interval,
)

Floats = NDArray[np.float64]
_DRAWS, _SEED = 2000, 0
UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Statistic:
    """Something that is computed from the mean scores of some variants.

    Attributes:
        variants: whose scores it needs.
        of_means: their means, each (draws,), to the statistic (draws,); NaN where it is undefined.
        of_one_cell: their scores in one cell, each (problems,), to its interval.
    """

    variants: tuple[str, ...]
    of_means: Callable[..., Floats]
    of_one_cell: Callable[..., Interval]


def mean_of(variant: str) -> Statistic:
    """A variant's mean score."""
    return Statistic((variant,), lambda mean: mean, mean_interval)


def difference(variant: str, other: str) -> Statistic:
    """``variant`` minus ``other``."""
    return Statistic((variant, other), lambda mean, other: mean - other, paired_difference_interval)


def relative(variant: str, full: str = "full") -> Statistic:
    """acc(variant) / acc(full): the paper's recovery."""
    return Statistic((variant, full), _ratio, ratio_interval)


def recovered_gain(variant: str, base: str = "base", full: str = "full") -> Statistic:
    """(acc(variant) - acc(base)) / (acc(full) - acc(base)); undefined where the full run gained nothing."""
    return Statistic(
        (variant, base, full), lambda mean, base, full: _ratio(mean - base, full - base), recovered_gain_interval
    )


def pooled_interval(cells: Sequence[Mapping[str, Floats]], statistic: Statistic) -> Interval:
    """A statistic of the mean scores over all cells, each cell weighing the same, with its 95 % interval.

    Args:
        cells: for each cell, the scores (problems,) of each variant, the problems in one order.

    Returns:
        The statistic, and its interval over 2,000 draws of cells and of problems in them: unbounded where a draw leaves
        the statistic undefined (a share of no gain is anything), NaN throughout where there is no cell.
    """
    if not cells:
        return UNKNOWN
    if len(cells) == 1:
        return statistic.of_one_cell(*(cells[0][name] for name in statistic.variants))
    sizes = tuple(sorted({len(cell[statistic.variants[0]]) for cell in cells}))
    problems, drawn_cells = _drawn(sizes, len(cells))
    means, draws = [], []
    for name in statistic.variants:
        means.append(np.array([np.mean([cell[name].mean() for cell in cells])]))
        per_cell = np.stack([problems[len(cell[name])] @ cell[name] for cell in cells], axis=1)  # (draws, cells)
        draws.append((drawn_cells * per_cell).sum(axis=1))  # (draws,)
    value, drawn = float(statistic.of_means(*means)[0]), statistic.of_means(*draws)
    if not np.isfinite(drawn).all():
        return Interval(value, float("-inf"), float("inf"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where the denominator is not positive."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), np.nan)


@lru_cache(maxsize=4)
def _drawn(sizes: tuple[int, ...], cells: int) -> tuple[dict[int, Floats], Floats]:
    """How often each problem of each size, and each cell (draws, cells), is drawn: the same for every statistic."""
    rng = np.random.default_rng(_SEED)
    return {size: _weights(rng, size) for size in sizes}, _weights(rng, cells)


def _weights(rng: np.random.Generator, size: int) -> Floats:
    """How often each of ``size`` things is drawn, as shares: (draws, size)."""
    return rng.multinomial(size, np.full(size, 1 / size), size=_DRAWS) / size

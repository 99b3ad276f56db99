"""Accuracies pooled over cells, and the intervals of anything that is computed from them.

One cell has the BCa intervals of rlstride.stats.intervals. For several, the bootstrap draws groups of cells, and
problems (or, for spectra, matrices). All variants of a cell were scored on the same problems, and all cells of a study
on the same ones, so a draw takes the same problems everywhere: differences and ratios of variants are paired, and what
makes a problem hard for every model is not averaged away.

Cells are nested: seeds of one model and algorithm are alike, and so are all runs of one model. Only the outermost level
of which the cells have at least three members is drawn, each member with all of its cells: what varies further in,
seeds for one, is already in the spread between members, and drawing it too would count it twice (Davison & Hinkley
1997, section 3.8; Field & Welsh 2007). Two members say next to nothing about a third, so an interval is about these
two. experiments/coverage.py measures how often the intervals cover the truth.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy.special import ndtri, stdtrit

from rlstride.arrays import Floats
from rlstride.stats.intervals import (
    LEVEL,
    Interval,
    mean_interval,
    paired_difference_interval,
    ratio_interval,
    recovered_gain_interval,
)
from rlstride.study.study import Cell

_DRAWS, _SEED = 2000, 0
FEWEST_MEMBERS = 3
Level = Literal["model", "algorithm", "seed"]
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


def having(cells: Mapping[Cell, dict[str, Floats]], *names: str) -> dict[Cell, dict[str, Floats]]:
    """The cells that have all of these."""
    return {cell: found for cell, found in cells.items() if all(name in found for name in names)}


def pooled_interval(cells: Mapping[Cell, Mapping[str, Floats]], statistic: Statistic) -> Interval:
    """A statistic of the mean scores over all cells, each cell weighing the same, with its 95 % interval.

    Args:
        cells: for each cell, the scores (problems,) of each variant, the problems in one order.

    Returns:
        The statistic, and its percentile interval over 2,000 draws of problems and, where a level has enough members
        (:func:`drawn_level`), of groups of cells. It is for new groups and new problems, like those that were drawn:
        unbounded where a draw leaves the statistic undefined (a share of no gain is anything), NaN throughout where
        there is no cell.
    """
    if not cells:
        return UNKNOWN
    scores = list(cells.values())
    if len(scores) == 1:
        return statistic.of_one_cell(*(scores[0][name] for name in statistic.variants))
    groups = groups_of(cells)
    sizes = tuple(sorted({len(cell[statistic.variants[0]]) for cell in scores}))
    problems, weights = _drawn(sizes, groups)
    means = [np.array([cell[name].mean() for cell in scores]) for name in statistic.variants]  # each (cells,)
    value = float(statistic.of_means(*(mean.mean(keepdims=True) for mean in means))[0])
    # Two bootstraps whose deviations add up: few groups widen their own spread, not that of the problems.
    of_groups = statistic.of_means(*(weights @ mean for mean in means))  # (draws,)
    of_problems = statistic.of_means(
        *(_redrawn([cell[name] for cell in scores], problems) for name in statistic.variants)
    )
    number = max(groups) + 1
    drawn = of_problems + (widening(number) * (of_groups - value) if number > 1 else 0.0)
    if not np.isfinite(drawn).all():
        return Interval(value, float("-inf"), float("inf"))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def drawn_level(cells: Collection[Cell]) -> Level | None:
    """What an interval over cells draws: models, else algorithms, else seeds; None where no level has three members."""
    levels: tuple[Level, ...] = get_args(Level)
    return next((level for level in levels if len(_members(cells, level)) >= FEWEST_MEMBERS), None)


def groups_of(cells: Collection[Cell]) -> tuple[int, ...]:
    """The group of each cell, numbered from 0: its member of the drawn level; all in one where none is drawn."""
    level = drawn_level(cells)
    if level is None:
        return (0,) * len(cells)
    members = _members(cells, level)
    return tuple(members[getattr(cell, level)] for cell in cells)


def _members(cells: Collection[Cell], level: Level) -> dict[str | int, int]:
    names = dict.fromkeys(getattr(cell, level) for cell in cells)
    return {name: number for number, name in enumerate(names)}


def widening(groups: int) -> float:
    """What the deviations of a bootstrap over few groups are multiplied by.

    A bootstrap's variance divides by G where an unbiased one divides by G - 1, and a percentile interval takes normal
    quantiles where the variance of G groups asks for those of Student's t: together sqrt(G / (G - 1)) * t / z
    (Hesterberg 2015, "What teachers should know about the bootstrap", The American Statistician 69, 371-386, on its
    narrowness and on expanded percentile intervals). 2.7 for three groups, 1.9 for four, 1.3 for eight.
    """
    tail = (1 + LEVEL) / 2
    return float(np.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, tail) / ndtri(tail))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where the denominator is not positive."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), np.nan)


def _redrawn(scores: Sequence[Floats], problems: Mapping[int, Floats]) -> Floats:
    """The mean over cells of their scores (problems,) in each draw of the problems of each size: (draws,)."""
    totals = {size: np.sum([cell for cell in scores if len(cell) == size], axis=0) for size in problems}  # (problems,)
    redrawn: Floats = np.sum([drawn @ totals[size] for size, drawn in problems.items()], axis=0) / len(scores)
    return redrawn


@lru_cache(maxsize=4)
def _drawn(sizes: tuple[int, ...], groups: tuple[int, ...]) -> tuple[dict[int, Floats], Floats]:
    """How often each problem of each size, and each cell (draws, cells), is drawn: the same for every statistic."""
    rng = np.random.default_rng(_SEED)
    problems = {size: _shares(rng, size) for size in sizes}
    cells = _shares(rng, max(groups) + 1)[:, groups]
    return problems, cells / cells.sum(axis=1, keepdims=True)  # of larger groups a draw has more cells


def _shares(rng: np.random.Generator, size: int) -> Floats:
    """How often each of ``size`` things is drawn, as shares: (draws, size)."""
    return rng.multinomial(size, np.full(size, 1 / size), size=_DRAWS) / size

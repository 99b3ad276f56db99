"""Intervals by bootstrap over problems: a problem is drawn with all its samples, and with every model's answers to it.

BCa intervals (Efron 1987; Efron & Tibshirani 1993, chapter 14): second-order correct, so that skewed scores near 0 or 1
and ratios keep their nominal coverage where the percentile interval loses it. All estimators here are functions of the
models' mean scores, so one resampling of the problems serves them all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from rlstride.arrays import Floats
from rlstride.errors import WorkError

RESAMPLES = 4000
LEVEL = 0.95
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """An estimate and the two ends of its interval."""

    value: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """As a table has it: NAME, NAME_low, NAME_high."""
        return dict(zip(interval_columns(name), (self.value, self.low, self.high), strict=True))

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return value < self.low or value > self.high


def interval_columns(name: str) -> tuple[str, str, str]:
    """The columns of an estimate and of the two ends of its interval."""
    return name, f"{name}_low", f"{name}_high"


def columns_of(intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Several intervals by name as the columns of one row."""
    return {column: value for name, interval in intervals.items() for column, value in interval.columns(name).items()}


def mean_interval(scores: ArrayLike, *, level: float = LEVEL, rng: np.random.Generator | None = None) -> Interval:
    """The mean score over problems.

    Where every problem scores 0, or every problem 1, a bootstrap sees no spread and would return a point: there the
    exact binomial bound for 0 (or all) of n successes takes its place (0.993 for 512 out of 512).

    Args:
        scores: (problems,) in [0, 1]: each the mean over the problem's samples.
        level: nominal coverage.
        rng: source of the resampling; by default the same draws at every call.

    Raises:
        WorkError: there is no score.
    """
    columns = _columns(scores)
    if np.all(columns == 0) or np.all(columns == 1):
        value, bound = float(columns[0, 0]), ((1 - level) / 2) ** (1 / len(columns))
        return Interval(value, *((bound, 1.0) if value else (0.0, 1 - bound)))
    return _bootstrap(lambda means: means[..., 0], columns, level, rng)


def paired_difference_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = LEVEL, rng: np.random.Generator | None = None
) -> Interval:
    """mean(a) - mean(b), for two models that answered the same problems in the same order.

    Two models that agree on every problem differ by 0, and the interval is that point.

    Raises:
        WorkError: the models did not answer equally many problems.
    """
    return _bootstrap(lambda means: means[..., 0] - means[..., 1], _columns(a, b), level, rng)


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, *, level: float = LEVEL, rng: np.random.Generator | None = None
) -> Interval:
    """mean(numerator) / mean(denominator), such as the relative accuracy acc(rank-1) / acc(full), on the same problems.

    Where the data do not tell the denominator from 0 the interval is unbounded; the value is NaN where it is 0.
    """
    return _ratio(
        lambda means: means[..., 0], lambda means: means[..., 1], _columns(numerator, denominator), level, rng
    )


def recovered_gain_interval(
    edited: ArrayLike,
    base: ArrayLike,
    full: ArrayLike,
    *,
    level: float = LEVEL,
    rng: np.random.Generator | None = None,
) -> Interval:
    """(acc(edited) - acc(base)) / (acc(full) - acc(base)), on the same problems (METHODS, section 1).

    Where the data do not tell the full model's gain from 0 the interval is unbounded: the share of nothing is anything.
    """
    return _ratio(
        lambda means: means[..., 0] - means[..., 1],
        lambda means: means[..., 2] - means[..., 1],
        _columns(edited, base, full),
        level,
        rng,
    )


Estimator = Callable[[Floats], Floats]  # (..., models) mean scores to (...) estimates


def _ratio(
    numerator: Estimator, denominator: Estimator, columns: Floats, level: float, rng: np.random.Generator | None
) -> Interval:
    """A ratio of two statistics; unbounded unless the denominator's own interval lies above 0."""
    resampled = _resampled_means(columns, rng)
    whole = _bca(denominator, columns, resampled, level)
    value = float(numerator(columns.mean(axis=0))) / whole.value if whole.value else float("nan")
    if whole.low <= 0:
        return Interval(value, float("-inf"), float("inf"))

    def statistic(means: Floats) -> Floats:
        # The few resamples whose denominator is not positive count as the end to which the ratio runs.
        top, bottom = numerator(means), denominator(means)
        return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.copysign(np.inf, top))

    return _bca(statistic, columns, resampled, level)


def _bootstrap(statistic: Estimator, columns: Floats, level: float, rng: np.random.Generator | None) -> Interval:
    return _bca(statistic, columns, _resampled_means(columns, rng), level)


def _bca(statistic: Estimator, columns: Floats, resampled: Floats, level: float) -> Interval:
    """The BCa interval of a function of the mean scores.

    Args:
        columns: (problems, models).
        resampled: (resamples, models) mean scores of bootstrap samples of the problems.
    """
    value = float(statistic(columns.mean(axis=0)))
    draws = np.sort(statistic(resampled))
    if draws[0] == draws[-1]:
        return Interval(value, float(draws[0]), float(draws[-1]))
    bias = ndtri(np.clip(_share_below(draws, value), 0.5 / len(draws), 1 - 0.5 / len(draws)))
    acceleration = _acceleration(statistic, columns)
    ends = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shares = ndtr(bias + ends / (1 - acceleration * ends))
    low, high = np.quantile(draws, shares, method="inverted_cdf")
    return Interval(value, float(low), float(high))


def _resampled_means(columns: Floats, rng: np.random.Generator | None) -> Floats:
    """Mean scores (resamples, models) of bootstrap samples of the problems.

    Problems with equal scores are interchangeable, so a sample is a multinomial draw over the distinct rows: with a few
    samples for each problem these are a few dozen, whatever the number of problems.
    """
    rng = rng or np.random.default_rng(_SEED)
    rows, counts = np.unique(columns, axis=0, return_counts=True)  # (distinct, models), (distinct,)
    order = np.argsort(-counts)  # a draw is done when nothing is left for the rarest rows
    drawn = rng.multinomial(len(columns), counts[order] / len(columns), size=RESAMPLES)  # (resamples, distinct)
    means: Floats = drawn @ rows[order] / len(columns)
    return means


def _share_below(draws: Floats, value: float) -> float:
    """The share of the sorted draws below the estimate; ties, which few distinct scores make common, count half."""
    tolerance = 1e-12 * max(1.0, abs(value))
    below, upto = np.searchsorted(draws, [value - tolerance, value + tolerance]).tolist()
    share: float = (below + upto) / 2 / len(draws)
    return share


def _acceleration(statistic: Estimator, columns: Floats) -> float:
    """BCa's skewness constant, from the jackknife over problems."""
    if len(columns) < 3:
        return 0.0
    left_out = statistic((columns.sum(axis=0) - columns) / (len(columns) - 1))  # (problems,)
    pulls = left_out.mean() - left_out
    spread = float((pulls**2).sum())
    if not np.isfinite(spread) or spread == 0:
        return 0.0
    skewness: float = float((pulls**3).sum()) / (6 * spread**1.5)
    return skewness


def _columns(*scores: ArrayLike) -> Floats:
    """The models' scores side by side, (problems, models)."""
    columns: Sequence[Floats] = [np.asarray(column, dtype=np.float64).ravel() for column in scores]
    counts = [len(column) for column in columns]
    if counts[0] == 0:
        raise WorkError("an interval needs at least one problem's score")
    if len(set(counts)) > 1:
        raise WorkError(
            f"paired intervals need scores of the same problems, not {' and '.join(map(str, counts))} of them"
        )
    return np.stack(columns, axis=1)

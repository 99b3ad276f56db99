"""From an interval, a bar and controls to a verdict. docs/claims.md states the same rules for people."""

import math
from collections.abc import Iterable
from typing import Literal

from rlstride.stats.intervals import Interval

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]


def at_least(measured: Interval, bar: float) -> Verdict:
    """Reproduced when the whole interval reaches the bar, not reproduced when all of it falls short."""
    if _unknown(measured):
        return "inconclusive"
    if measured.low >= bar:
        return "reproduced"
    return "not reproduced" if measured.high < bar else "inconclusive"


def at_most(measured: Interval, bar: float) -> Verdict:
    """Reproduced when the whole interval stays below the bar, not reproduced when none of it does."""
    if _unknown(measured):
        return "inconclusive"
    if measured.high < bar:
        return "reproduced"
    return "not reproduced" if measured.low >= bar else "inconclusive"


def near(measured: Interval, published: float, margin: float = 0.2) -> Verdict:
    """Reproduced when the whole interval lies within ``margin`` of the published figure, not when all is outside."""
    if _unknown(measured):
        return "inconclusive"
    low, high = published * (1 - margin), published * (1 + margin)
    if low <= measured.low and measured.high <= high:
        return "reproduced"
    return "not reproduced" if measured.high < low or measured.low > high else "inconclusive"


def within(difference: Interval, margin: float) -> Verdict:
    """Reproduced when the whole interval lies within ``margin`` of zero, not reproduced when all of it lies outside."""
    if _unknown(difference):
        return "inconclusive"
    if -margin <= difference.low and difference.high <= margin:
        return "reproduced"
    return "not reproduced" if difference.high < -margin or difference.low > margin else "inconclusive"


def beats(advantage: Interval) -> Verdict:
    """Whether something is better than its control: the interval of their difference lies above zero."""
    if _unknown(advantage):
        return "inconclusive"
    if advantage.low > 0:
        return "reproduced"
    return "not reproduced" if advantage.high <= 0 else "inconclusive"


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim that needs every part to hold."""
    found = list(verdicts)
    for worst in ("not run", "not reproduced", "inconclusive"):
        if worst in found:
            return worst
    return "reproduced"


def _unknown(interval: Interval) -> bool:
    return math.isnan(interval.low) or math.isnan(interval.high)

"""Levels that adapt to what tests find: numbers by hand, and the promise itself, played out."""

import numpy as np
import pytest

from rlstride.stride.alpha_investing import AlphaInvesting


def test_a_test_costs_a_quarter_of_the_wealth_and_a_confirmation_pays_the_rate() -> None:
    investing = AlphaInvesting(0.1)
    assert investing.level == pytest.approx(0.025 / 1.025)
    investing.settle(False)
    assert investing.wealth == pytest.approx(0.075)
    investing.settle(True)
    assert investing.wealth == pytest.approx(0.175)
    investing.refute()
    assert investing.wealth == pytest.approx(0.0875)


def test_no_test_is_more_lenient_than_the_rate() -> None:
    investing = AlphaInvesting(0.1)
    for _ in range(20):
        investing.settle(True)
    assert investing.level == 0.1
    investing.settle(False)
    assert investing.wealth == pytest.approx(2.1 - 0.1 / 0.9)


def confirmations(rng: np.random.Generator, real: float, rate: float, tests: int) -> tuple[int, int]:
    """Of one run: those owed to luck, and all. A share of the tests is of real gains, with p-values of cubed size."""
    investing, lucky, every = AlphaInvesting(rate), 0, 0
    for _ in range(tests):
        is_real = rng.random() < real
        confirmed = rng.random() ** (3 if is_real else 1) < investing.level
        investing.settle(bool(confirmed))
        lucky, every = lucky + (confirmed and not is_real), every + confirmed
    return lucky, every


@pytest.mark.parametrize(("real", "found"), [(0.0, 0.1), (0.2, 1), (0.6, 10)])
def test_luck_confirms_no_larger_share_than_promised(real: float, found: float) -> None:
    rng = np.random.default_rng(0)
    lucky, every = np.array([confirmations(rng, real, 0.2, 60) for _ in range(3000)]).T
    excess = lucky - 0.2 * (every + 1)
    assert excess.mean() < 3 * excess.std() / np.sqrt(3000)  # where nothing is real, the promise is used up
    assert every.mean() > found  # else it would be an empty one

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from rlstride.errors import WorkError
from rlstride.stats.intervals import (
    Interval,
    mean_interval,
    paired_difference_interval,
    ratio_interval,
    recovered_gain_interval,
)

DATA_SETS = 400
PROBLEMS = 100
# 95 % of 400 intervals should cover; the band is three binomial standard deviations (1.09 % each) around that.
COVERAGE = (0.95 - 0.033, 0.95 + 0.033)


def coverage(draw_interval: Callable[[], Interval], truth: float) -> float:
    intervals = [draw_interval() for _ in range(DATA_SETS)]
    return sum(interval.low <= truth <= interval.high for interval in intervals) / DATA_SETS


def three_models(rng: np.random.Generator, problems: int = PROBLEMS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """avg@4 scores of an edited, a base and a full model: true means 0.6, 0.3 and 0.7, hard problems hard for all."""
    ease = rng.random(problems)
    edited, base, full = (rng.binomial(4, p) / 4 for p in (0.5 * ease + 0.35, 0.4 * ease + 0.1, 0.5 * ease + 0.45))
    return edited, base, full


@pytest.mark.parametrize(("accuracy", "samples"), [(0.4, 4), (0.97, 4), (0.32, 1)])
def test_the_interval_of_a_mean_covers_the_true_accuracy_at_the_nominal_rate(accuracy: float, samples: int) -> None:
    rng = np.random.default_rng(0)

    def draw() -> Interval:
        solve_rates = rng.beta(8 * accuracy, 8 * (1 - accuracy), PROBLEMS)
        return mean_interval(rng.binomial(samples, solve_rates) / samples)

    assert COVERAGE[0] <= coverage(draw, accuracy) <= COVERAGE[1]


def test_the_interval_of_a_paired_difference_covers_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    covered = coverage(lambda: paired_difference_interval(*three_models(rng)[:2]), truth=0.3)
    assert COVERAGE[0] <= covered <= COVERAGE[1]


def test_the_interval_of_a_relative_accuracy_covers_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(2)
    covered = coverage(lambda: ratio_interval(*three_models(rng)[::2]), truth=0.6 / 0.7)
    assert COVERAGE[0] <= covered <= COVERAGE[1]


@pytest.mark.slow
def test_the_interval_of_a_recovered_gain_covers_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(3)
    covered = coverage(lambda: recovered_gain_interval(*three_models(rng)), truth=0.3 / 0.4)
    assert COVERAGE[0] <= covered <= COVERAGE[1]


def test_a_mean_agrees_with_scipys_bca_bootstrap() -> None:
    scores = np.random.default_rng(4).beta(6, 1, 150)
    ours = mean_interval(scores)
    theirs = stats.bootstrap((scores,), np.mean, method="BCa", n_resamples=20_000, rng=5).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(scores.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_many_problems_give_the_normal_interval() -> None:
    scores = np.random.default_rng(6).binomial(4, 0.5, 5000) / 4
    half = 1.96 * scores.std(ddof=1) / math.sqrt(5000)
    interval = mean_interval(scores)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.06)


def test_the_samples_of_a_problem_are_not_counted_as_problems() -> None:
    """100 problems that are always or never solved say no more with 8 samples each than with one."""
    solved = np.repeat([0.0, 1.0], 50)
    interval = mean_interval(solved)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


@pytest.mark.parametrize("problems", [8, 512])
def test_perfect_scores_still_leave_room_for_doubt(problems: int) -> None:
    perfect, hopeless = mean_interval(np.ones(problems)), mean_interval(np.zeros(problems))
    assert perfect.value == perfect.high == 1
    assert stats.binom.pmf(problems, problems, perfect.low) == pytest.approx(0.025)
    assert hopeless.value == hopeless.low == 0
    assert hopeless.high == pytest.approx(1 - perfect.low)


def test_pairing_sharpens_a_difference_of_models_that_find_the_same_problems_hard() -> None:
    edited, base, _ = three_models(np.random.default_rng(7))
    paired = paired_difference_interval(edited, base)
    shuffled = paired_difference_interval(edited, np.random.default_rng(8).permutation(base))
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < shuffled.high - shuffled.low


def test_models_that_agree_on_every_problem_differ_by_exactly_nothing() -> None:
    scores = three_models(np.random.default_rng(9))[0]
    assert paired_difference_interval(scores, scores) == Interval(0.0, 0.0, 0.0)
    assert ratio_interval(scores, scores) == Interval(1.0, 1.0, 1.0)


def test_the_share_of_a_gain_that_may_be_zero_is_unbounded() -> None:
    rng = np.random.default_rng(10)
    edited, base, _ = three_models(rng)
    no_better = rng.permutation(base)
    assert recovered_gain_interval(edited, base, no_better).low == -math.inf
    assert recovered_gain_interval(edited, base, no_better).high == math.inf
    assert math.isnan(recovered_gain_interval(edited, base, base).value)


def test_a_ratio_to_a_model_that_solves_nothing_is_unbounded() -> None:
    interval = ratio_interval(np.full(20, 0.5), np.zeros(20))
    assert math.isnan(interval.value)
    assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_the_same_scores_always_get_the_same_interval() -> None:
    scores = three_models(np.random.default_rng(11))[0]
    assert mean_interval(scores) == mean_interval(scores)
    assert mean_interval(scores, rng=np.random.default_rng(1)) != mean_interval(scores, rng=np.random.default_rng(2))


def test_scores_of_different_problems_are_refused() -> None:
    with pytest.raises(WorkError, match="not 3 and 2 of them"):
        paired_difference_interval([1, 0, 1], [1, 0])


def test_no_scores_are_refused() -> None:
    with pytest.raises(WorkError, match="at least one problem"):
        mean_interval([])

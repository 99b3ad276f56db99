"""The intervals of pooled runs, and of one, cover a known truth as often as they say.

As in the studies: problems whose difficulty models share, 4 samples each, models and seeds with effects of their own.
experiments/coverage.py measures more designs, with more replicates.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from rlstride.stats.intervals import (
    Interval,
    mean_interval,
    paired_difference_interval,
    ratio_interval,
    recovered_gain_interval,
)
from rlstride.stats.pooling import (
    Statistic,
    difference,
    drawn_level,
    groups_of,
    mean_of,
    pooled_interval,
    recovered_gain,
    relative,
    widening,
)
from rlstride.study.study import Cell

Scores = dict[str, np.ndarray]
SAMPLES = 4
# Each model repairs a share of the base's failures: full 0.9 of them, rank 1 0.75; the base solves 0.4.
BASE, FULL, RANK_1 = 0.4, 0.4 + 0.9 * 0.6, 0.4 + 0.75 * 0.6
TRUTH = {"mean": RANK_1, "difference": RANK_1 - FULL, "ratio": RANK_1 / FULL, "gain": 0.75 / 0.9}
POOLED: dict[str, Statistic] = {
    "mean": mean_of("rank_1"),
    "difference": difference("rank_1", "full"),
    "ratio": relative("rank_1"),
    "gain": recovered_gain("rank_1"),
}


def coverage(intervals: Iterable[Interval], truth: float) -> float:
    return float(np.mean([not interval.excludes(truth) for interval in intervals]))


def answers(ease: np.ndarray, effects: tuple[float, float], rng: np.random.Generator) -> Scores:
    """Scores (problems,) of one run, by variant; ``effects`` move what the full run and rank 1 repair."""
    repaired = {"base": 0.0, "full": 0.9 + effects[0], "rank_1": 0.75 + effects[1]}
    return {
        name: rng.binomial(SAMPLES, np.clip(ease + share * (1 - ease), 0, 1)) / SAMPLES
        for name, share in repaired.items()
    }


def binomial_deviation(replicates: int) -> float:
    """Standard deviation of the share of so many 95 % intervals that cover."""
    return math.sqrt(0.95 * 0.05 / replicates)


def study(
    rng: np.random.Generator, models: int, seeds: int, between: float, within: float, problems: int = 512
) -> dict[Cell, Scores]:
    """Runs of several models; standard deviations of rank 1's share between models, and between seeds of a model."""
    ease = rng.beta(2.8, 4.2, problems)
    cells = {}
    for model in range(models):
        shared = between * rng.standard_normal()
        for seed in range(seeds):
            own = within * rng.standard_normal()
            cells[Cell(f"m{model}", "grpo", seed)] = answers(ease, (0.3 * (shared + own), shared + own), rng)
    return cells


@pytest.mark.parametrize(
    ("name", "interval", "replicates"),
    [
        ("mean", lambda run: mean_interval(run["rank_1"]), 1000),
        ("difference", lambda run: paired_difference_interval(run["rank_1"], run["full"]), 300),
        ("ratio", lambda run: ratio_interval(run["rank_1"], run["full"]), 300),
        ("gain", lambda run: recovered_gain_interval(run["rank_1"], run["base"], run["full"]), 300),
    ],
)
def test_the_bca_intervals_of_one_run_cover_its_truth(
    name: str, interval: Callable[[Scores], Interval], replicates: int
) -> None:
    rng = np.random.default_rng(list(TRUTH).index(name))
    runs = (answers(rng.beta(2.8, 4.2, 512), (0.0, 0.0), rng) for _ in range(replicates))
    covered = coverage(map(interval, runs), TRUTH[name])
    assert covered == pytest.approx(0.95, abs=3.5 * binomial_deviation(replicates))


@pytest.mark.parametrize("models", [3, 4, 8])
def test_pooled_intervals_cover_what_new_models_would_show(models: int) -> None:
    """Where problems matter as much as models do, few models make an interval too wide rather than too narrow."""
    rng = np.random.default_rng(models)
    studies = [study(rng, models, 1, between=0.05, within=0.03) for _ in range(400)]
    for name, statistic in POOLED.items():
        covered = coverage([pooled_interval(runs, statistic) for runs in studies], TRUTH[name])
        assert covered >= 0.95 - 3 * binomial_deviation(400), name
        assert covered <= 0.995, name


def test_seeds_of_a_model_are_not_models() -> None:
    """Eight seeds each of five models that differ far more than seeds do: 40 runs, but five of what varies."""
    rng = np.random.default_rng(10)
    studies = [study(rng, 5, 8, between=0.06, within=0.01, problems=128) for _ in range(300)]
    flat = [{Cell(f"{cell.model}-{cell.seed}", "grpo", 0): run for cell, run in runs.items()} for runs in studies]
    nested_covers, flat_covers = (
        coverage([pooled_interval(runs, recovered_gain("rank_1")) for runs in variants], TRUTH["gain"])
        for variants in (studies, flat)
    )
    assert nested_covers >= 0.95 - 3 * binomial_deviation(300)
    assert flat_covers <= 0.8


def test_what_makes_a_problem_hard_for_every_model_is_not_averaged_away() -> None:
    """Eight models that start alike, on few problems: the problems are what another study would have other ones of."""
    rng = np.random.default_rng(12)
    studies = [study(rng, 8, 1, between=0.0, within=0.0, problems=81) for _ in range(300)]
    covered = coverage([pooled_interval(runs, mean_of("base")) for runs in studies], BASE)
    assert 0.95 - 3 * binomial_deviation(300) <= covered <= 0.995


def test_seeds_that_are_all_that_differs_are_not_counted_twice() -> None:
    """The spread between models holds that of their seeds: intervals are no wider than Student's t over the models."""
    rng = np.random.default_rng(11)
    widths, expected = [], []
    for _ in range(50):
        runs = study(rng, 8, 3, between=0.0, within=0.08, problems=4000)
        interval = pooled_interval(runs, mean_of("rank_1"))
        by_model = np.array([run["rank_1"].mean() for run in runs.values()]).reshape(8, 3).mean(axis=1)
        widths.append(interval.high - interval.low)
        expected.append(2 * 2.365 * by_model.std(ddof=1) / math.sqrt(8))  # 7 degrees of freedom
    assert np.mean(widths) == pytest.approx(np.mean(expected), rel=0.15)


def test_what_is_drawn_is_the_outermost_level_that_has_several_members() -> None:
    algorithms = ("grpo", "rloo", "ppo")
    cells = [Cell(model, algorithm, seed) for model in "abc" for algorithm in algorithms for seed in (0, 1, 2)]
    assert drawn_level(cells) == "model"
    assert groups_of(cells) == (0,) * 9 + (1,) * 9 + (2,) * 9
    assert drawn_level(cells[:18]) == "algorithm"  # of two models
    assert groups_of(cells[:18]) == (0, 0, 0, 1, 1, 1, 2, 2, 2) * 2
    assert drawn_level(cells[:6]) == "seed"  # one model, two algorithms
    assert groups_of(cells[:6]) == (0, 1, 2, 0, 1, 2)


def test_of_two_models_the_interval_is_about_these_two() -> None:
    """Nothing but problems is drawn: it covers what these very runs would reach on other problems, and is no wider."""
    rng = np.random.default_rng(13)
    widths, errors = [], []
    for _ in range(200):
        runs = study(rng, 2, 1, between=0.2, within=0.1)
        assert drawn_level(runs) is None
        interval = pooled_interval(runs, mean_of("rank_1"))
        mean = np.mean([run["rank_1"] for run in runs.values()], axis=0)  # (problems,)
        widths.append(interval.high - interval.low)
        errors.append(2 * 1.96 * mean.std(ddof=1) / math.sqrt(len(mean)))
    assert np.mean(widths) == pytest.approx(np.mean(errors), rel=0.02)


def test_runs_weigh_the_same_where_models_have_unequal_numbers_of_them() -> None:
    runs = {Cell("a", "grpo", seed): {"full": np.full(20, 0.2)} for seed in range(3)}
    runs[Cell("b", "grpo", 0)] = {"full": np.full(20, 0.6)}
    assert pooled_interval(runs, mean_of("full")).value == pytest.approx(0.3)


@pytest.mark.parametrize(("groups", "t"), [(3, 4.303), (4, 3.182), (8, 2.365)])
def test_few_groups_widen_an_interval_to_students_t(groups: int, t: float) -> None:
    """t / z for the quantile, sqrt(G / (G - 1)) for the bootstrap's variance; t as tables have it."""
    assert widening(groups) == pytest.approx(t / 1.95996 * math.sqrt(groups / (groups - 1)), rel=1e-3)

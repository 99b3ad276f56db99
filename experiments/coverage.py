"""How often the report's 95 % intervals cover the truth, on simulated studies in which it is known.

    python experiments/coverage.py [--replicates 1000] [--out FILE.csv]

A problem has a difficulty of its own, the chance p that the base solves it, Beta-distributed with the mean and the
spread that the bases of config/studies/grid.yaml show; all models share it, and answer each problem 4 times. Of what
the base fails the full run repairs a share g and the rank-1 model a share h: their chances are p + g (1 - p) and
p + h (1 - p), and every truth is a function of mean effects. p varies with the model; g and h with the model, the
algorithm, their pair and the seed, about as much as a two-way analysis of the grid's 56 RL runs finds (recovered gain:
0.06 between models, 0.02 between algorithms, 0.045 else). A model's runs share its base's answers.

Rules. `BCa`: one run. `present`: several runs, as the report has them. `modules`: the bootstrap over modules of
dynamics.csv. For comparison, percentile intervals of bootstraps that draw, beside problems, `cells` as if independent
(the rule before); whole `groups` of them; `groups and seeds` in each; whole groups, deviations widened `by
sqrt(G/(G-1))` alone; and `pairs`, the present rule where it takes pairs of a model and an algorithm for its groups.

Targets. `this run`, `these runs`: new problems alone. `new models`: like those of the study, with its algorithms, and
new problems; `new seeds`: of the models that the study has, and new problems. The present rule is about new models
where there are three or more, about new seeds where there are fewer models and three seeds, else about these runs.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rlstride.dynamics.quantities import summary
from rlstride.stats.intervals import Interval
from rlstride.stats.pooling import (
    FEWEST_MEMBERS,
    Statistic,
    difference,
    mean_of,
    pooled_interval,
    recovered_gain,
    relative,
)
from rlstride.study.study import Cell

Floats = NDArray[np.float64]
Row = dict[str, Any]
SAMPLES = 4
DRAWS = 2000
BASE, FULL, RANK_1 = 0.42, 0.88, 0.75  # mean of p, g and h
BETA = 6.8  # a + b of the problems' Beta distribution
STATISTICS: dict[str, Statistic] = {
    "mean": mean_of("rank_1"),
    "paired difference": difference("rank_1", "full"),
    "ratio": relative("rank_1"),
    "recovered gain": recovered_gain("rank_1"),
}
COLUMNS = (
    *("statistic", "design", "rule", "target", "cells", "seeds", "problems", "samples", "truth"),
    *("replicates", "coverage", "coverage_low", "coverage_high", "mean_width"),
)


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the rank-1 model's share h; the full run's share g has half of them."""

    model: float = 0.05
    algorithm: float = 0.015
    pair: float = 0.03
    seed: float = 0.03


LIKE_THE_GRID = Spread()
SEEDS_ALONE = Spread(model=0.0, algorithm=0.0, pair=0.0, seed=0.06)


@dataclass(frozen=True)
class Design:
    """A study: its cells are all models with all algorithms and seeds."""

    name: str
    models: int
    algorithms: int = 1
    seeds: int = 1
    problems: int = 512
    spread: Spread = field(default=LIKE_THE_GRID)

    @property
    def cells(self) -> list[Cell]:
        return [
            Cell(f"m{model}", f"a{algorithm}", seed)
            for model in range(self.models)
            for algorithm in range(self.algorithms)
            for seed in range(self.seeds)
        ]


@dataclass(frozen=True)
class Simulated:
    """The answers of a study, and the true means over problems of these very cells."""

    scores: dict[Cell, dict[str, Floats]]  # by variant, (problems,)
    means: dict[str, float]
    means_over_seeds: dict[str, float]  # over all seeds that these models and algorithms might have had


ONE_RUN = [
    Design("one run", 1, problems=512),
    Design("one run", 1, problems=81),
]
POOLED = [
    *(Design(f"{models} models", models) for models in (2, 3, 4, 8, 14)),
    *(Design(f"{models} models", models, seeds=3) for models in (2, 3, 4, 8, 14)),
    Design("2 models", 2, seeds=3, problems=81),
    *(
        Design(f"{models} models that differ in their seeds alone", models, seeds=3, spread=SEEDS_ALONE)
        for models in (2, 8)
    ),
    Design("one model", 1, seeds=3, spread=SEEDS_ALONE),
    Design("8 models x 7 algorithms", 8, algorithms=7),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicates", type=int, default=1000, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    rows: list[Row] = []
    for measured in measurements(options.replicates):
        rows += measured
        print(
            pd.DataFrame(measured).reindex(columns=COLUMNS).to_string(index=False, header=len(rows) == len(measured)),
            flush=True,
        )
    if options.out:
        pd.DataFrame(rows).reindex(columns=COLUMNS).to_csv(
            options.out, index=False, float_format="%.4g", lineterminator="\n"
        )


def measurements(replicates: int) -> Iterator[list[Row]]:
    """The rows, design by design; each has random numbers of its own, so none depends on what stands before it."""
    for number, design in enumerate(ONE_RUN):
        yield coverage_of_one_run(design, replicates, np.random.default_rng([0, number]))
    for number, design in enumerate(POOLED):
        # A replicate of 56 cells takes as long as seven of 8.
        yield coverage_of_pools(
            design, replicates if len(design.cells) < 50 else replicates // 2, np.random.default_rng([1, number])
        )
    yield coverage_over_modules(replicates, np.random.default_rng(2))


def coverage_of_one_run(design: Design, replicates: int, rng: np.random.Generator) -> list[Row]:
    still = Design(design.name, 1, problems=design.problems, spread=Spread(0, 0, 0, 0))
    truths = {name: value(statistic, expected_means()) for name, statistic in STATISTICS.items()}
    intervals: dict[str, list[Interval]] = {name: [] for name in STATISTICS}
    for _ in range(replicates):
        study = simulate(still, rng, base_spread=0.0)
        for name, statistic in STATISTICS.items():
            intervals[name].append(pooled_interval(study.scores, statistic))
    return [
        row(design, name, "BCa", "this run", [truths[name]] * replicates, found) for name, found in intervals.items()
    ]


def coverage_of_pools(design: Design, replicates: int, rng: np.random.Generator) -> list[Row]:
    """Every statistic by every rule, for these cells and for new groups of them."""
    rules = weights_by_rule(design)
    truths = {name: value(statistic, expected_means()) for name, statistic in STATISTICS.items()}
    problems = shares(np.random.default_rng(0), design.problems)
    found: dict[tuple[str, str], list[Interval]] = {}
    of_these: dict[str, list[float]] = {name: [] for name in STATISTICS}
    of_seeds: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for _ in range(replicates):
        study = simulate(design, rng)
        drawn = {
            variant: problems @ np.stack([scores[variant] for scores in study.scores.values()], axis=1)
            for variant in ("base", "full", "rank_1")
        }  # each (draws, cells)
        for name, statistic in STATISTICS.items():
            of_these[name].append(value(statistic, study.means))
            of_seeds[name].append(value(statistic, study.means_over_seeds))
            found.setdefault((name, "present"), []).append(pooled_interval(study.scores, statistic))
            if design.algorithms > 1:
                found.setdefault((name, "pairs"), []).append(pooled_interval(as_models(study.scores), statistic))
            for rule, weights in rules.items():
                means = [(weights * drawn[variant]).sum(axis=1) for variant in statistic.variants]
                low, high = np.quantile(statistic.of_means(*means), [0.025, 0.975])
                found.setdefault((name, rule), []).append(Interval(math.nan, float(low), float(high)))
    expected = {name: [truth] * replicates for name, truth in truths.items()}
    targets = {"new models": expected, "new seeds": of_seeds, "these runs": of_these}
    if design.models == 1:
        targets.pop("new models")
    if design.seeds < FEWEST_MEMBERS:
        targets.pop("new seeds")
    rows = [
        row(design, name, rule, target, truth[name], ends)
        for (name, rule), ends in found.items()
        for target, truth in targets.items()
        if rule == "present" or target == next(iter(targets))
    ]
    return sorted(rows, key=lambda entry: (list(STATISTICS).index(entry["statistic"]), entry["target"]))


def as_models(scores: dict[Cell, dict[str, Floats]]) -> dict[Cell, dict[str, Floats]]:
    """Each pair of model and algorithm under a name of its own, so that the present rule takes it for a model."""
    return {Cell(f"{cell.model}-{cell.algorithm}", cell.algorithm, cell.seed): found for cell, found in scores.items()}


def weights_by_rule(design: Design) -> dict[str, Floats]:
    """The rules that the present one is compared with: the weight of each cell in each draw, (draws, cells)."""
    cells = design.cells
    rng = np.random.default_rng(0)
    level = [cell.seed if design.models == 1 else cell.model for cell in cells]
    groups = np.unique(level, return_inverse=True)[1]
    drawn = shares(rng, groups.max() + 1)  # (draws, groups)
    number = drawn.shape[1]
    whole = drawn[:, groups] * number / len(cells)
    rules = {"cells": shares(rng, len(cells)), "groups": whole}
    if design.models > 1 and design.seeds > 1:
        rules["groups and seeds"] = two_stages(rng, drawn, groups)
    rules["groups by sqrt(G/(G-1))"] = 1 / len(cells) + (whole - 1 / len(cells)) * math.sqrt(number / (number - 1))
    return rules


def two_stages(rng: np.random.Generator, drawn: Floats, groups: NDArray[np.int64]) -> Floats:
    """Weights of cells where each draw of a group draws among its cells anew."""
    weights = np.zeros((DRAWS, len(groups)))
    for group in range(drawn.shape[1]):
        members = np.flatnonzero(groups == group)
        often = np.rint(drawn[:, group] * drawn.shape[1]).astype(int)
        counts = rng.multinomial(often * len(members), np.full(len(members), 1 / len(members)))  # (draws, members)
        weights[:, members] = counts / len(groups)
    return weights


def simulate(design: Design, rng: np.random.Generator, base_spread: float = 0.07) -> Simulated:
    """One study: other models, seeds and problems at every call; algorithms differ by the same amounts in all."""
    concentrations = BASE * BETA, (1 - BASE) * BETA
    difficulty = rng.beta(*concentrations, design.problems)  # (problems,)
    shape = design.models, design.algorithms, design.seeds
    full, of_pairs, rank_1 = random_effects(design, rng)  # each (models, algorithms, seeds), around 0
    bases = 1 + base_spread * rng.standard_normal(design.models)
    answers = {model: answer(difficulty * bases[model], rng) for model in range(design.models)}
    scores, means, over_seeds = {}, [], []
    for cell, (model, algorithm, seed) in zip(design.cells, np.ndindex(*shape), strict=True):
        p = difficulty * bases[model]
        g = FULL + 0.5 * rank_1[model, algorithm, seed] + full[model, algorithm, seed]
        h = RANK_1 + rank_1[model, algorithm, seed]
        scores[cell] = {
            "base": answers[model],
            "full": answer(p + g * (1 - p), rng),
            "rank_1": answer(p + h * (1 - p), rng),
        }
        means.append(means_of(BASE * bases[model], g, h))
        settled = of_pairs[model, algorithm, 0]
        over_seeds.append(means_of(BASE * bases[model], FULL + 0.5 * settled, RANK_1 + settled))
    return Simulated(scores, averaged(means), averaged(over_seeds))


def averaged(means: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([mean[name] for mean in means])) for name in means[0]}


def random_effects(design: Design, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """What moves the full run's share alone; what moves the rank-1 model's, and half as much the full run's, for all
    seeds of a pair; and the same with the seed's own part.
    """
    shape = design.models, design.algorithms, design.seeds
    spread = design.spread
    # Algorithms are those of the study, not a sample: the same in every simulated one, around a mean of 0.
    fixed = np.linspace(-1, 1, design.algorithms) * spread.algorithm * math.sqrt(3) if design.algorithms > 1 else 0.0
    own = 0.3 * spread.pair * rng.standard_normal(shape)
    of_pairs = (
        spread.model * rng.standard_normal(shape[0])[:, None, None]
        + np.reshape(fixed, (1, -1, 1))
        + spread.pair * rng.standard_normal(shape[:2])[:, :, None]
    )
    return own, of_pairs, of_pairs + spread.seed * rng.standard_normal(shape)


def answer(chance: Floats, rng: np.random.Generator) -> Floats:
    """Mean score of each problem over its samples, (problems,)."""
    return rng.binomial(SAMPLES, np.clip(chance, 0, 1)) / SAMPLES


def means_of(base: float, g: float, h: float) -> dict[str, float]:
    return {"base": base, "full": base + g * (1 - base), "rank_1": base + h * (1 - base)}


def expected_means() -> dict[str, float]:
    """Over models, seeds and problems: effects are independent of each other and have mean 0."""
    return means_of(BASE, FULL, RANK_1)


def value(statistic: Statistic, means: dict[str, float]) -> float:
    return float(statistic.of_means(*(np.array([means[variant]]) for variant in statistic.variants))[0])


def coverage_over_modules(replicates: int, rng: np.random.Generator) -> list[Row]:
    """dynamics.csv's bootstrap over the 14 modules of a two-layer run, alike by chance or by the run they share."""
    rows = []
    for name, shared in (("independent modules", 0.0), ("modules with a third of the variance in common", 1 / 3)):
        intervals = []
        for _ in range(replicates):
            values = 0.9 + 0.05 * (
                math.sqrt(1 - shared) * rng.standard_normal(14) + math.sqrt(shared) * rng.standard_normal()
            )
            frame = pd.DataFrame({"quantity": "r2_in_sample", "rank": 1, "value": values})
            found = summary(frame).set_index("quantity").loc["r2_in_sample"]
            intervals.append(Interval(*(float(found[end]) for end in ("value", "low", "high"))))
        rows.append(
            {"statistic": "mean over modules", "design": name, "rule": "modules", "target": "new runs and modules"}
            | {"cells": 1, "seeds": 1}
            | covered([0.9] * replicates, intervals)
        )
    return rows


def row(design: Design, statistic: str, rule: str, target: str, truths: list[float], intervals: list[Interval]) -> Row:
    return {
        "statistic": statistic,
        "design": design.name,
        "rule": rule,
        "target": target,
        "cells": len(design.cells),
        "seeds": design.seeds,
        "problems": design.problems,
        "samples": SAMPLES,
    } | covered(truths, intervals)


def covered(truths: list[float], intervals: list[Interval]) -> Row:
    """The share of intervals that hold their truth, with Wilson's interval, and their mean width."""
    hits = sum(found.low <= truth <= found.high for truth, found in zip(truths, intervals, strict=True))
    ends = stats.binomtest(hits, len(intervals)).proportion_ci(method="wilson")
    return {
        "truth": float(np.mean(truths)),
        "replicates": len(intervals),
        "coverage": hits / len(intervals),
        "coverage_low": ends.low,
        "coverage_high": ends.high,
        "mean_width": float(np.mean([found.high - found.low for found in intervals])),
    }


def shares(rng: np.random.Generator, size: int) -> Floats:
    """How often each of ``size`` things is drawn, as shares: (draws, size)."""
    return rng.multinomial(size, np.full(size, 1 / size), size=DRAWS) / size


if __name__ == "__main__":
    main()

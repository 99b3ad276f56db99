"""The claims table: for each claim the published figure, the measured one, its control, and a verdict from them.

docs/claims.md states the rules for people; rlstride.report.verdicts holds them.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from rlstride.evaluation.intervals import Interval
from rlstride.report import published, verdicts
from rlstride.report.evidence import Evidence, format_interval, gather
from rlstride.report.pooling import UNKNOWN, difference, drawn_level, mean_of, pooled_interval, recovered_gain, relative
from rlstride.report.verdicts import Verdict
from rlstride.study.algorithms import PolicyGradient
from rlstride.study.load import Study
from rlstride.study.plan import predictions
from rlstride.study.variants import IN_SCOPE_FULL, window_variant

SUPERVISED = "supervised, no RL: for comparison"
# Edits with the whole update's norm and one triplet of each matrix, but not the leading one.
_EQUAL_NORM = ("rank_1_random", "rank_1_random_u", "rank_1_random_v", "rank_1_bottom", "single_2")
_NO_DYNAMICS = "dynamics of a cell"
RUNS_ALONE = "the interval is about these runs on other problems"


@dataclass(frozen=True)
class Claim:
    """A row of claims.csv."""

    claim: str
    source: str
    published: float | None
    measured: float
    low: float
    high: float
    cells: int
    control: str
    verdict: Verdict
    algorithm: str
    rule: str
    note: str


def claims_table(results_dir: Path, study: Study) -> pd.DataFrame:
    """Every claim for every algorithm of a study, pooled over its models and seeds.

    Args:
        results_dir: results/{study}, after ``rlstride collect``.

    Returns:
        One row for each claim and algorithm, claims together; where its data are missing, the verdict is ``not run``.
    """
    by_algorithm = {
        name: gather(results_dir, study, [cell for cell in study.cells if cell.algorithm == name])
        for name in study.algorithms
    }
    rows = []
    for family in _FAMILIES:
        found = [list(family(name, evidence)) for name, evidence in by_algorithm.items()]
        rows += [claim for same_claim in zip(*found, strict=True) for claim in same_claim]
    return pd.DataFrame([asdict(row) for row in rows], columns=list(Claim.__dataclass_fields__))


def _learning(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    for other, name in (("base", "the base"), ("frozen", "the frozen control")):
        gain = evidence.interval(difference("full", other))
        cells = len(evidence.having("full", other))
        yield _claim(
            f"RL learns: accuracy gained over {name}",
            algorithm,
            evidence,
            source=f"{published.PROJECT}: its target",
            published=published.LEARNING_TARGET,
            measured=gain,
            cells=cells,
            control=_accuracies(evidence, "full", other),
            verdict=verdicts.at_least(gain, published.LEARNING_TARGET),
            rule=f"full - {other} >= {published.LEARNING_TARGET:g}",
            missing=f"full and {other} scored in one cell",
        )


def _dominance(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    measures = (("relative accuracy", relative, ("full",)), ("recovered gain", recovered_gain, ("base", "full")))
    asked = [control for control in _EQUAL_NORM if control in evidence.study.spec.ablation.variants]
    equal_norm = asked or _EQUAL_NORM[:1]
    advantages = [evidence.interval(difference("rank_1", control)) for control in equal_norm]
    for name, statistic, references in measures:
        recovery = evidence.interval(statistic("rank_1"))
        controls = {
            control: evidence.interval(statistic(control))
            for control in (*equal_norm, "rank_1_unscaled", IN_SCOPE_FULL)
        }
        yield _claim(
            f"Rank-1 dominance: {name} of the rank-1 model",
            algorithm,
            evidence,
            source=f"{published.PAPER}, abstract (over 99 %)",
            published=published.RANK_1_RECOVERY,
            measured=recovery,
            cells=len(evidence.having("rank_1", *references)),
            control=_named(controls),
            verdict=verdicts.all_of(
                [verdicts.at_least(recovery, published.RANK_1_RECOVERY), *map(verdicts.beats, advantages)]
            ),
            rule=f"rank_1 recovers >= {published.RANK_1_RECOVERY:g}, and beats every scored control of equal norm",
            missing=f"rank_1, {' and '.join(references)} scored in one cell",
        )


def _within_scope(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """Rank or scope: what rank 1 keeps of the gain that any edit of these matrices can keep."""
    share = evidence.interval(recovered_gain("rank_1", full=IN_SCOPE_FULL))
    controls = {
        "in_scope_full of the gain": evidence.interval(recovered_gain(IN_SCOPE_FULL)),
        "rank_1_in_all of the gain": evidence.interval(recovered_gain("rank_1_in_all")),
        "rank_4 of the in-scope gain": evidence.interval(recovered_gain("rank_4", full=IN_SCOPE_FULL)),
    }
    yield _claim(
        "Rank-1 dominance: share of the in-scope gain in the rank-1 model",
        algorithm,
        evidence,
        source=f"{published.PROJECT}: the paper's figure, of what these matrices can carry",
        published=published.RANK_1_RECOVERY,
        measured=share,
        cells=len(evidence.having("rank_1", "base", IN_SCOPE_FULL)),
        control=_named(controls),
        verdict=verdicts.at_least(share, published.RANK_1_RECOVERY),
        rule=f"rank_1 recovers >= {published.RANK_1_RECOVERY:g} of what in_scope_full gains over the base",
        missing=f"rank_1, base and {IN_SCOPE_FULL} scored in one cell",
    )


def _norm_share(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    trainer = evidence.study.algorithms[algorithm].trainer
    figure = published.NORM_SHARES.get(trainer)
    cells = evidence.shares
    share = pooled_interval(cells, mean_of("share"))
    null = pooled_interval(cells, mean_of("null"))
    verdict = verdicts.near(share, figure) if figure is not None else "inconclusive"
    yield _claim(
        "Norm share s1/|D|F of the last update, mean over in-scope matrices",
        algorithm,
        evidence,
        source=published.PAPER,
        published=figure,
        measured=share,
        cells=len(cells),
        control=f"Gaussian update of the same shapes {null.value:.3f}",
        verdict=verdicts.all_of([verdict, verdicts.beats(pooled_interval(cells, difference("share", "null")))]),
        rule="the interval lies within 20 % of the published figure, and above the share of a Gaussian update",
        missing="spectra of the last step",
        note="the share depends on the matrices' shapes: a small model's is larger for any update",
    )


def _linear_dynamics(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    fit = evidence.of_dynamics(mean_of("r2_in_sample"))
    over_walk = evidence.of_dynamics(difference("r2_in_sample", "r2_random_walk"))
    better = evidence.of_dynamics(difference("forecast_error_persistence", "forecast_error"))
    ratio = evidence.of_dynamics(relative("forecast_error", "forecast_error_persistence"))
    cells = len(evidence.dynamics)
    yield _claim(
        "Rank-1 linear dynamics: in-sample R2 of accuracy on u1",
        algorithm,
        evidence,
        source=published.PAPER,
        published=published.LINEAR_DYNAMICS_R2,
        measured=fit,
        cells=cells,
        control=_movement(evidence, "r2_random_walk", "r2_permuted", "r2_iid_noise", "q2_leave_one_out"),
        verdict=verdicts.all_of(
            [verdicts.at_least(fit, published.LINEAR_DYNAMICS_R2), verdicts.beats(over_walk), verdicts.beats(better)]
        ),
        rule=f"R2 >= {published.LINEAR_DYNAMICS_R2:g}, above the random walk's, and the forecast beats persistence",
        note="R2 in sample alone says nothing: the same fit on a random walk reaches it",
        missing=_NO_DYNAMICS,
    )
    yield _claim(
        "Rank-1 linear dynamics: error of the forecast of later steps over persistence's",
        algorithm,
        evidence,
        source=published.PROJECT,
        published=None,
        measured=ratio,
        cells=cells,
        control=_movement(evidence, "forecast_error_persistence", "forecast_error"),
        verdict=verdicts.at_most(ratio, 1.0),
        rule="ratio < 1: better than the window's last accuracy carried on",
        missing=_NO_DYNAMICS,
    )


def _lines_in_the_step(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """The other side of the quarrel: whether weights go on along the lines of their first two thirds."""
    cells = len(evidence.dynamics)
    negative = evidence.of_dynamics(mean_of("whole_step_r2_later_negative"))
    yield _claim(
        "Lines in the step: share of the matrices whose later updates they predict with R2 < 0",
        algorithm,
        evidence,
        source=f"{published.NEXT} (over half, 10 checkpoints to predict 5)",
        published=published.NEXT_NEGATIVE_R2,
        measured=negative,
        cells=cells,
        control=_movement(
            evidence, "whole_step_r2_in_sample", "whole_step_r2_later", "whole_step_r2_later_random_walk"
        ),
        verdict=verdicts.at_least(negative, published.NEXT_NEGATIVE_R2),
        rule=f"share >= {published.NEXT_NEGATIVE_R2:g}, fitted on the first two thirds of the steps",
        note="reproduced means that weights do not follow lines; a random walk's do not either",
        missing=_NO_DYNAMICS,
    )
    error = evidence.of_dynamics(mean_of("whole_step_error_later"))
    over_walk = evidence.of_dynamics(difference("whole_step_error_later_random_walk", "whole_step_error_later"))
    yield _claim(
        "Lines in the step: error of the predicted later weights over that of weights that stay",
        algorithm,
        evidence,
        source=published.PROJECT,
        published=None,
        measured=error,
        cells=cells,
        control=_movement(
            evidence,
            "whole_step_error_later_random_walk",
            "whole_step_error_later_from_last",
            "whole_step_error_later_quadratic",
        ),
        verdict=verdicts.all_of([verdicts.at_most(error, 1.0), verdicts.beats(over_walk)]),
        rule="ratio < 1, and below a random walk's: what linear extrapolation of weights rests on",
        missing=_NO_DYNAMICS,
    )


def _retention(algorithm: str, evidence: Evidence) -> tuple[float, str, Interval, Interval, Verdict]:
    """AlphaRL at 40 %: the bar and its source, relative accuracy, the advantage over stopping there, the verdict."""
    trainer = evidence.study.algorithms[algorithm].trainer
    bar, source = published.ALPHARL_RETENTION, f"{published.PAPER}, abstract (over 96 %)"
    if trainer in published.ALPHARL_AT_40:
        reached, full = published.ALPHARL_AT_40[trainer]
        bar, source = reached / full, f"{published.PAPER}, table ({reached:g} of {full:g}); abstract: over 96 %"
    alpharl, last = (window_variant(published.ALPHARL_WINDOW, method) for method in ("alpharl", "last"))
    kept = evidence.interval(relative(alpharl))
    advantage = evidence.interval(difference(alpharl, last))
    return bar, source, kept, advantage, verdicts.all_of([verdicts.at_least(kept, bar), verdicts.beats(advantage)])


def _alpharl(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    window = published.ALPHARL_WINDOW
    alpharl, last, linear = (window_variant(window, method) for method in ("alpharl", "last", "linear"))
    bar, source, kept, advantage, verdict = _retention(algorithm, evidence)
    applicable = alpharl in {prediction.variant for prediction in predictions(evidence.study.spec)}
    asked = alpharl in _predicted(evidence.study)
    common = {"missing": f"{alpharl} scored in one cell with the full run"}
    if asked and not applicable:
        common = {"missing": "3 kept steps in the window: not applicable to runs as short as these"}
    rivals = {name: evidence.interval(relative(name)) for name in (last, linear)}
    yield _claim(
        "AlphaRL at 40 % of the steps: relative accuracy",
        algorithm,
        evidence,
        source=source,
        published=bar,
        measured=kept,
        cells=len(evidence.having(alpharl, "full")),
        control=_named(rivals),
        verdict=verdict,
        rule=f"{alpharl} keeps the published share of the full run's accuracy, and beats {last} beyond noise",
        **common,
    )
    gain = evidence.interval(recovered_gain(alpharl))
    yield _claim(
        "AlphaRL at 40 % of the steps: recovered gain",
        algorithm,
        evidence,
        source=f"{published.PROJECT}: the paper's retention, read as gain",
        published=published.ALPHARL_RETENTION,
        measured=gain,
        cells=len(evidence.having(alpharl, "base", "full")),
        control=_named({name: evidence.interval(recovered_gain(name)) for name in rivals}),
        verdict=verdicts.all_of([verdicts.at_least(gain, published.ALPHARL_RETENTION), verdicts.beats(advantage)]),
        rule=f"{alpharl} keeps >= {published.ALPHARL_RETENTION:g} of the gain, and beats {last} beyond noise",
        **common,
    )
    over_linear = evidence.interval(difference(alpharl, linear))
    yield _claim(
        "AlphaRL at 40 % of the steps: accuracy over plain linear extrapolation",
        algorithm,
        evidence,
        source=published.PROJECT,
        published=None,
        measured=over_linear,
        cells=len(evidence.having(alpharl, linear)),
        control=_accuracies(evidence, alpharl, linear),
        verdict=verdicts.beats(over_linear),
        rule=f"{alpharl} - {linear} > 0",
        missing=f"{alpharl} and {linear} scored in one cell",
    )


def _speed_up(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    costs = evidence.costs.get(published.ALPHARL_WINDOW, {})
    kept = _retention(algorithm, evidence)[-1]
    for unit, name in (("steps", "RL steps"), ("seconds", "wall-clock, evaluations and fit included")):
        timed = {cell: cost for cell, cost in costs.items() if f"full_{unit}" in cost}
        ratio = pooled_interval(timed, relative(f"full_{unit}", f"window_{unit}"))
        spent = [pooled_interval(timed, mean_of(f"{part}_{unit}")).value for part in ("full", "window")]
        yield _claim(
            f"AlphaRL at 40 % of the steps: speed-up in {name}",
            algorithm,
            evidence,
            source=f"{published.PAPER}, abstract (in steps)",
            published=published.ALPHARL_SPEED_UP,
            measured=ratio,
            cells=len(timed),
            control=f"full run {spent[0]:.4g} {unit}, shortened {spent[1]:.4g} {unit} (mean over cells)",
            verdict=verdicts.all_of([verdicts.at_least(ratio, published.ALPHARL_SPEED_UP), kept]),
            rule=f"ratio >= {published.ALPHARL_SPEED_UP:g}, and the retention claim holds: a speed-up to less is none",
            missing="a trajectory with its validation and the ledger of the fit"
            if unit == "seconds"
            else "a trajectory",
            note="each run was timed once; the interval is the spread over cells" if unit == "seconds" else "",
        )


_FAMILIES: tuple[Callable[[str, Evidence], Iterable[Claim]], ...] = (
    _learning,
    _dominance,
    _within_scope,
    _norm_share,
    _linear_dynamics,
    _lines_in_the_step,
    _alpharl,
    _speed_up,
)


def _claim(
    claim: str,
    algorithm: str,
    evidence: Evidence,
    *,
    source: str,
    published: float | None,
    measured: Interval,
    cells: int,
    control: str,
    verdict: Verdict,
    rule: str,
    missing: str,
    note: str = "",
) -> Claim:
    """The row; without a cell that has the data it says so instead of a figure."""
    if cells == 0:
        measured, control, verdict, note = UNKNOWN, "", "not run", f"needs {missing}"
    else:
        note = "; ".join(part for part in (_coverage(evidence, cells), _kind(evidence, algorithm), note) if part)
    return Claim(
        claim=claim,
        source=source,
        published=published,
        measured=measured.value,
        low=measured.low,
        high=measured.high,
        cells=cells,
        control=control,
        verdict=verdict,
        algorithm=algorithm,
        rule=rule,
        note=note,
    )


def _coverage(evidence: Evidence, cells: int) -> str:
    """How many cells a figure stands for, and what its interval is about (rlstride.report.pooling)."""
    parts = [f"{cells} of {len(evidence.cells)} cells"] if cells < len(evidence.cells) else []
    level = drawn_level(evidence.cells)
    return "; ".join([*parts, RUNS_ALONE if level is None else f"the interval is about new {level}s like these"])


def _kind(evidence: Evidence, algorithm: str) -> str:
    return "" if isinstance(evidence.study.algorithms[algorithm], PolicyGradient) else SUPERVISED


def _predicted(study: Study) -> set[str]:
    asked = study.spec.extrapolation
    return {window_variant(window, method) for window in asked.windows for method in asked.methods}


def _accuracies(evidence: Evidence, *variants: str) -> str:
    return _named({name: evidence.interval(mean_of(name)) for name in variants})


def _movement(evidence: Evidence, *quantities: str) -> str:
    return _named({name: evidence.of_dynamics(mean_of(name)) for name in quantities})


def _named(intervals: dict[str, Interval]) -> str:
    return "; ".join(f"{name} {format_interval(interval)}" for name, interval in intervals.items())

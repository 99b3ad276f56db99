"""Claims about how the weights move: norm shares, linear dynamics, lines in the step."""

from rlstride.claims import published, verdicts
from rlstride.claims.claim import Claim, Found, movement
from rlstride.stats.pooling import difference, mean_of, pooled_interval, relative
from rlstride.tables.evidence import Evidence

_NO_DYNAMICS = "dynamics of a cell"


def _norm_share(algorithm: str, evidence: Evidence) -> Found:
    figure = published.NORM_SHARES.get(evidence.study.algorithms[algorithm].trainer)
    share, null = (pooled_interval(evidence.shares, mean_of(name)) for name in ("share", "null"))
    above_null = verdicts.beats(pooled_interval(evidence.shares, difference("share", "null")))
    verdict = verdicts.near(share, figure) if figure is not None else "inconclusive"
    return Found(
        measured=share,
        cells=len(evidence.shares),
        control=f"Gaussian update of the same shapes {null.value:.3f}",
        verdict=verdicts.all_of([verdict, above_null]),
        published=figure,
    )


def _linear_fit(algorithm: str, evidence: Evidence) -> Found:
    fit = evidence.of_dynamics(mean_of("r2_in_sample"))
    over_walk = evidence.of_dynamics(difference("r2_in_sample", "r2_random_walk"))
    better = evidence.of_dynamics(difference("forecast_error_persistence", "forecast_error"))
    return Found(
        measured=fit,
        cells=len(evidence.dynamics),
        control=movement(evidence, "r2_random_walk", "r2_permuted", "r2_iid_noise", "q2_leave_one_out"),
        verdict=verdicts.all_of(
            [verdicts.at_least(fit, published.LINEAR_DYNAMICS_R2), verdicts.beats(over_walk), verdicts.beats(better)]
        ),
    )


def _forecast(algorithm: str, evidence: Evidence) -> Found:
    ratio = evidence.of_dynamics(relative("forecast_error", "forecast_error_persistence"))
    return Found(
        measured=ratio,
        cells=len(evidence.dynamics),
        control=movement(evidence, "forecast_error_persistence", "forecast_error"),
        verdict=verdicts.at_most(ratio, 1.0),
    )


def _negative_lines(algorithm: str, evidence: Evidence) -> Found:
    negative = evidence.of_dynamics(mean_of("whole_step_r2_later_negative"))
    return Found(
        measured=negative,
        cells=len(evidence.dynamics),
        control=movement(evidence, "whole_step_r2_in_sample", "whole_step_r2_later", "whole_step_r2_later_random_walk"),
        verdict=verdicts.at_least(negative, published.NEXT_NEGATIVE_R2),
    )


def _error_of_lines(algorithm: str, evidence: Evidence) -> Found:
    error = evidence.of_dynamics(mean_of("whole_step_error_later"))
    over_walk = evidence.of_dynamics(difference("whole_step_error_later_random_walk", "whole_step_error_later"))
    beside = [f"whole_step_error_later_{name}" for name in ("random_walk", "from_last", "quadratic")]
    return Found(
        measured=error,
        cells=len(evidence.dynamics),
        control=movement(evidence, *beside),
        verdict=verdicts.all_of([verdicts.at_most(error, 1.0), verdicts.beats(over_walk)]),
    )


CLAIMS = (
    Claim(
        "norm_share",
        "Norm share s1/|D|F of the last update, mean over in-scope matrices",
        source=published.PAPER,
        published=None,
        rule="the interval lies within 20 % of the published figure, and above the share of a Gaussian update",
        bar="the whole interval within 20 % of the algorithm's published figure (GRPO .188, RLOO .196, ...)",
        control="must lie above the share of an iid Gaussian update of the same shapes, (sqrt m + sqrt n) / sqrt(mn)",
        needs="spectra of the last step",
        measure=_norm_share,
        note="the share depends on the matrices' shapes: a small model's is larger for any update",
    ),
    Claim(
        "linear_dynamics",
        "Rank-1 linear dynamics: in-sample R2 of accuracy on u1",
        source=published.PAPER,
        published=published.LINEAR_DYNAMICS_R2,
        rule=f"R2 >= {published.LINEAR_DYNAMICS_R2:g}, above the random walk's, and the forecast beats persistence",
        bar=f">= {published.LINEAR_DYNAMICS_R2:g} (mean over modules in the paper)",
        control="R2 must lie above the random walk's, and the forecast of later steps must have a smaller error than "
        "persistence. R2 on permuted accuracies and on noise, and leave-one-out Q2, are shown beside",
        needs=_NO_DYNAMICS,
        measure=_linear_fit,
        note="R2 in sample alone says nothing: the same fit on a random walk reaches it",
    ),
    Claim(
        "linear_forecast",
        "Rank-1 linear dynamics: error of the forecast of later steps over persistence's",
        source=published.PROJECT,
        published=None,
        rule="ratio < 1: better than the window's last accuracy carried on",
        bar="< 1",
        control="persistence: accuracy stays at the window's last value",
        needs=_NO_DYNAMICS,
        measure=_forecast,
    ),
    Claim(
        "lines_negative",
        "Lines in the step: share of the matrices whose later updates they predict with R2 < 0",
        source=f"{published.NEXT} (over half, 10 checkpoints to predict 5)",
        published=published.NEXT_NEGATIVE_R2,
        rule=f"share >= {published.NEXT_NEGATIVE_R2:g}, fitted on the first two thirds of the steps",
        bar=f'>= {published.NEXT_NEGATIVE_R2:g} ("over half of the updates", NExt, {published.NEXT}: least squares on '
        "10 checkpoints, to predict the next 5; here the first two thirds and the last third of the kept steps)",
        control="*reproduced* means that weights do not follow lines. R2 in sample, and R2 on the later steps of a "
        "random walk of the same step norms, are shown beside",
        needs=_NO_DYNAMICS,
        measure=_negative_lines,
        note="reproduced means that weights do not follow lines; a random walk's do not either",
    ),
    Claim(
        "lines_error",
        "Lines in the step: error of the predicted later weights over that of weights that stay",
        source=published.PROJECT,
        published=None,
        rule="ratio < 1, and below a random walk's: what linear extrapolation of weights rests on",
        bar="< 1",
        control="a random walk's must be larger; that of going on from the last step with the line's slope, and a "
        "parabola's, are shown beside",
        needs=_NO_DYNAMICS,
        measure=_error_of_lines,
    ),
)

"""Claims about how the weights move: norm shares, linear dynamics, lines in the step."""

from collections.abc import Iterable

from rlstride.claims import published, verdicts
from rlstride.claims.row import Claim, claim_row, movement
from rlstride.stats.pooling import difference, mean_of, pooled_interval, relative
from rlstride.tables.evidence import Evidence

_NO_DYNAMICS = "dynamics of a cell"


def norm_share(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """The share of an update's norm that the leading direction of each matrix has."""
    trainer = evidence.study.algorithms[algorithm].trainer
    figure = published.NORM_SHARES.get(trainer)
    cells = evidence.shares
    share = pooled_interval(cells, mean_of("share"))
    null = pooled_interval(cells, mean_of("null"))
    verdict = verdicts.near(share, figure) if figure is not None else "inconclusive"
    yield claim_row(
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


def linear_dynamics(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """Whether accuracy is linear in the leading singular vector, in sample and on later steps."""
    fit = evidence.of_dynamics(mean_of("r2_in_sample"))
    over_walk = evidence.of_dynamics(difference("r2_in_sample", "r2_random_walk"))
    better = evidence.of_dynamics(difference("forecast_error_persistence", "forecast_error"))
    ratio = evidence.of_dynamics(relative("forecast_error", "forecast_error_persistence"))
    cells = len(evidence.dynamics)
    yield claim_row(
        "Rank-1 linear dynamics: in-sample R2 of accuracy on u1",
        algorithm,
        evidence,
        source=published.PAPER,
        published=published.LINEAR_DYNAMICS_R2,
        measured=fit,
        cells=cells,
        control=movement(evidence, "r2_random_walk", "r2_permuted", "r2_iid_noise", "q2_leave_one_out"),
        verdict=verdicts.all_of(
            [verdicts.at_least(fit, published.LINEAR_DYNAMICS_R2), verdicts.beats(over_walk), verdicts.beats(better)]
        ),
        rule=f"R2 >= {published.LINEAR_DYNAMICS_R2:g}, above the random walk's, and the forecast beats persistence",
        note="R2 in sample alone says nothing: the same fit on a random walk reaches it",
        missing=_NO_DYNAMICS,
    )
    yield claim_row(
        "Rank-1 linear dynamics: error of the forecast of later steps over persistence's",
        algorithm,
        evidence,
        source=published.PROJECT,
        published=None,
        measured=ratio,
        cells=cells,
        control=movement(evidence, "forecast_error_persistence", "forecast_error"),
        verdict=verdicts.at_most(ratio, 1.0),
        rule="ratio < 1: better than the window's last accuracy carried on",
        missing=_NO_DYNAMICS,
    )


def lines_in_the_step(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """The other side of the quarrel: whether weights go on along the lines of their first two thirds."""
    cells = len(evidence.dynamics)
    negative = evidence.of_dynamics(mean_of("whole_step_r2_later_negative"))
    yield claim_row(
        "Lines in the step: share of the matrices whose later updates they predict with R2 < 0",
        algorithm,
        evidence,
        source=f"{published.NEXT} (over half, 10 checkpoints to predict 5)",
        published=published.NEXT_NEGATIVE_R2,
        measured=negative,
        cells=cells,
        control=movement(evidence, "whole_step_r2_in_sample", "whole_step_r2_later", "whole_step_r2_later_random_walk"),
        verdict=verdicts.at_least(negative, published.NEXT_NEGATIVE_R2),
        rule=f"share >= {published.NEXT_NEGATIVE_R2:g}, fitted on the first two thirds of the steps",
        note="reproduced means that weights do not follow lines; a random walk's do not either",
        missing=_NO_DYNAMICS,
    )
    error = evidence.of_dynamics(mean_of("whole_step_error_later"))
    over_walk = evidence.of_dynamics(difference("whole_step_error_later_random_walk", "whole_step_error_later"))
    yield claim_row(
        "Lines in the step: error of the predicted later weights over that of weights that stay",
        algorithm,
        evidence,
        source=published.PROJECT,
        published=None,
        measured=error,
        cells=cells,
        control=movement(
            evidence,
            "whole_step_error_later_random_walk",
            "whole_step_error_later_from_last",
            "whole_step_error_later_quadratic",
        ),
        verdict=verdicts.all_of([verdicts.at_most(error, 1.0), verdicts.beats(over_walk)]),
        rule="ratio < 1, and below a random walk's: what linear extrapolation of weights rests on",
        missing=_NO_DYNAMICS,
    )

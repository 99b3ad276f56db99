"""Claims about what bfloat16 files hide of an update, and about runs that went too far along their own line."""

from rlstride.claims import published, verdicts
from rlstride.claims.claim import Claim, Found, accuracies, compared, named
from rlstride.stats.intervals import Interval, ratio_interval
from rlstride.stats.pooling import Statistic, mean_of, recovered_gain, relative
from rlstride.study.asks import has_edits_of, has_method, has_rounding
from rlstride.tables.evidence import PARAMETERS, Evidence

_MARGIN = 0.02  # of accuracy: less is called nothing
_BF16, _NOISE = "full_bf16_in_all", "rounding_noise_unscaled"
_SHRUNK, _UNSCALED, _EQUAL_NORM = "full_shrunk", "rank_1_unscaled", "in_scope_full_as_rank_1"
_MEASURED = "a measured step with float32 checkpoints"


def _share(algorithm: str, evidence: Evidence) -> Found:
    ratio = relative("share_bf16_grid", "share_fp32")
    beside = ("share_fp32", "share_bf16", "share_bf16_grid", "expected_share_bf16_grid", "random_share_bf16_grid")
    measured = evidence.of_rounding(ratio)
    return Found(
        measured=measured,
        cells=len(evidence.having_rounding(*ratio.variants)),
        control=named({name: evidence.of_rounding(mean_of(name)) for name in beside}),
        verdict=verdicts.at_most(measured, 1.0),
    )


def _sparsity(algorithm: str, evidence: Evidence) -> Found:
    more = _more_unchanged("bf16_grid", "fp32")
    beside = [f"sparsity_{dtype}" for dtype in ("fp32", "bf16", "bf16_grid")]
    beside += ["expected_sparsity_bf16_grid", "random_sparsity_bf16_grid"]
    measured = evidence.of_rounding(more)
    return Found(
        measured=measured,
        cells=len(evidence.having_rounding(*more.variants)),
        control=named({name: evidence.of_rounding(relative(name, PARAMETERS)) for name in beside}),
        verdict=verdicts.beats(measured),
    )


def _more_unchanged(dtype: str, other: str) -> Statistic:
    """Of all parameters, what is unchanged in one dtype less what is in another: tensors are drawn, sizes and all."""
    return Statistic(
        (f"sparsity_{dtype}", f"sparsity_{other}", PARAMETERS),
        lambda unchanged, less, parameters: (unchanged - less) / parameters,
        lambda unchanged, less, parameters: ratio_interval(unchanged - less, parameters),
    )


def _rounded_run(algorithm: str, evidence: Evidence) -> Found:
    gains = {name: evidence.interval(recovered_gain(name)) for name in ("rank_1", "rank_1_bf16", "in_scope_full_bf16")}
    control = "; ".join((accuracies(evidence, "base_bf16", "base"), f"of the gain: {named(gains)}"))
    return compared(evidence, _BF16, "full", control, _is_nothing)


def _noise_alone(algorithm: str, evidence: Evidence) -> Found:
    control = accuracies(evidence, "rounding_noise", "rank_1_random", "base")
    return compared(evidence, _NOISE, "base", control, _is_nothing)


def _shrunk(algorithm: str, evidence: Evidence) -> Found:
    return compared(evidence, _SHRUNK, "full", accuracies(evidence, _SHRUNK, "full", "base"), verdicts.beats)


def _over_equal_norm(algorithm: str, evidence: Evidence) -> Found:
    control = accuracies(evidence, _UNSCALED, _EQUAL_NORM, "full")
    return compared(evidence, _UNSCALED, _EQUAL_NORM, control, verdicts.beats)


def _is_nothing(change: Interval) -> verdicts.Verdict:
    return verdicts.within(change, _MARGIN)


_GRID = "base on bfloat16's grid before it moves, as a published one is"

CLAIMS = (
    Claim(
        "rounding_share",
        "Rounding: norm share s1/|D|F as bfloat16 files show it, over that of the float32 update",
        source=f"{published.PROJECT}: are the published shares rounding? ({published.PAPER}: .184 to .256, RL)",
        published=None,
        rule="mean ratio over the matrices < 1: rounding lowers it",
        bar=f"< 1 ({_GRID})",
        control="shown beside: both shares, that of both sides rounded, what is expected of the grid alone, and a "
        "random update's",
        needs=_MEASURED,
        measure=_share,
        is_asked=has_rounding,
    ),
    Claim(
        "rounding_sparsity",
        "Rounding: share of parameters within 1e-5 in bfloat16 files, less that in float32",
        source=f"{published.PROJECT}: is the published sparsity rounding? ({published.SUBNETWORKS}: .685 to .960)",
        published=None,
        rule="difference > 0: rounding makes sparsity",
        bar=f"> 0 ({_GRID})",
        control="shown beside: each share, that of both sides rounded, what is expected of the grid alone, and a "
        "random update's",
        needs=_MEASURED,
        measure=_sparsity,
        is_asked=has_rounding,
    ),
    Claim(
        "bf16_accuracy",
        "Rounding: accuracy of the run rounded to bfloat16, less the run's",
        source=published.PROJECT,
        published=None,
        rule=f"the whole interval within {_MARGIN:g} of 0: rounding takes nothing that shows",
        bar=f"within {_MARGIN:g} of 0",
        control="shown beside: the base, rounded and not; of the gain, what rank 1 keeps of either update",
        needs=f"{_BF16} and full scored in one cell",
        measure=_rounded_run,
        is_asked=has_edits_of(_BF16),
    ),
    Claim(
        "noise_accuracy",
        "Rounding: accuracy of the rounding noise alone on the base, less the base's",
        source=published.PROJECT,
        published=None,
        rule=f"the whole interval within {_MARGIN:g} of 0: noise at its own norm carries nothing",
        bar=f"within {_MARGIN:g} of 0",
        control="shown beside: the noise at the update's norm, and a random rank-1 update of it",
        needs=f"{_NOISE} and base scored in one cell",
        measure=_noise_alone,
        is_asked=has_edits_of(_NOISE),
    ),
    Claim(
        "shrinkage",
        "Shrinkage: accuracy of the shrunk run over the run's own",
        source=published.PROJECT,
        published=None,
        rule=f"{_SHRUNK} - full > 0: the run overshot",
        bar="> 0 (the factor, 1 or less, is chosen on validation problems)",
        control="a factor of 1, the run itself, is among those chosen from",
        needs=f"{_SHRUNK} and full scored in one cell",
        measure=_shrunk,
        is_asked=has_method(_SHRUNK),
    ),
    Claim(
        "rank_1_over_equal_norm",
        "Shrinkage: accuracy of the unscaled rank-1 model over the whole update of equal norm",
        source=published.PROJECT,
        published=None,
        rule=f"{_UNSCALED} - {_EQUAL_NORM} > 0: rank 1 is better by more than being shorter",
        bar="> 0",
        control="it is the control",
        needs=f"{_UNSCALED} and {_EQUAL_NORM} scored in one cell",
        measure=_over_equal_norm,
        is_asked=has_edits_of(_UNSCALED, _EQUAL_NORM),
    ),
)

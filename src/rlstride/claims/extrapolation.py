"""Claims about AlphaRL: what it keeps from a first part of the run, and what that saves."""

from collections.abc import Callable

from rlstride.claims import published, verdicts
from rlstride.claims.claim import Claim, Found, accuracies, compared, named
from rlstride.config.variants import window_variant
from rlstride.stats.pooling import difference, mean_of, pooled_interval, recovered_gain, relative
from rlstride.study.plan import asked_predictions, predictions
from rlstride.tables.evidence import Evidence

_ALPHARL, _LAST, _LINEAR = (
    window_variant(published.ALPHARL_WINDOW, method) for method in ("alpharl", "last", "linear")
)
_AT = f"AlphaRL at {100 * published.ALPHARL_WINDOW:.0f} % of the steps"


def _advantage(evidence: Evidence) -> verdicts.Verdict:
    """Whether it beats RL that stops where it starts."""
    return verdicts.beats(evidence.interval(difference(_ALPHARL, _LAST)))


def _why_missing(evidence: Evidence) -> str:
    asked = evidence.study.spec.extrapolation
    named_so = {window_variant(*each) for each in asked_predictions(asked.methods, asked.windows)}
    applicable = {prediction.variant for prediction in predictions(evidence.study.spec)}
    if _ALPHARL in named_so and _ALPHARL not in applicable:
        return "3 kept steps in the window: not applicable to runs as short as these"
    return ""


def _retention(algorithm: str, evidence: Evidence) -> Found:
    trainer = evidence.study.algorithms[algorithm].trainer
    bar, source = published.ALPHARL_RETENTION, f"{published.PAPER}, abstract (over 96 %)"
    if trainer in published.ALPHARL_AT_40:
        reached, full = published.ALPHARL_AT_40[trainer]
        bar, source = reached / full, f"{published.PAPER}, table ({reached:g} of {full:g}); abstract: over 96 %"
    kept = evidence.interval(relative(_ALPHARL))
    return Found(
        measured=kept,
        cells=len(evidence.having(_ALPHARL, "full")),
        control=named({name: evidence.interval(relative(name)) for name in (_LAST, _LINEAR)}),
        verdict=verdicts.all_of([verdicts.at_least(kept, bar), _advantage(evidence)]),
        published=bar,
        source=source,
        missing=_why_missing(evidence),
    )


def _gain(algorithm: str, evidence: Evidence) -> Found:
    gain = evidence.interval(recovered_gain(_ALPHARL))
    return Found(
        measured=gain,
        cells=len(evidence.having(_ALPHARL, "base", "full")),
        control=named({name: evidence.interval(recovered_gain(name)) for name in (_LAST, _LINEAR)}),
        verdict=verdicts.all_of([verdicts.at_least(gain, published.ALPHARL_RETENTION), _advantage(evidence)]),
        missing=_why_missing(evidence),
    )


def _over_linear(algorithm: str, evidence: Evidence) -> Found:
    return compared(evidence, _ALPHARL, _LINEAR, accuracies(evidence, _ALPHARL, _LINEAR), verdicts.beats)


def _saved(unit: str) -> Callable[[str, Evidence], Found]:
    def measure(algorithm: str, evidence: Evidence) -> Found:
        costs = evidence.costs.get(published.ALPHARL_WINDOW, {})
        timed = {cell: cost for cell, cost in costs.items() if f"full_{unit}" in cost}
        ratio = pooled_interval(timed, relative(f"full_{unit}", f"window_{unit}"))
        full, window = (pooled_interval(timed, mean_of(f"{part}_{unit}")).value for part in ("full", "window"))
        kept = _retention(algorithm, evidence).verdict
        return Found(
            measured=ratio,
            cells=len(timed),
            control=f"full run {full:.4g} {unit}, shortened {window:.4g} {unit} (mean over cells)",
            verdict=verdicts.all_of([verdicts.at_least(ratio, published.ALPHARL_SPEED_UP), kept]),
        )

    return measure


def _speed_up(id: str, unit: str, name: str, needs: str, note: str = "") -> Claim:
    return Claim(
        id,
        f"{_AT}: speed-up in {name}",
        source=f"{published.PAPER}, abstract (in steps)",
        published=published.ALPHARL_SPEED_UP,
        rule=f"ratio >= {published.ALPHARL_SPEED_UP:g}, and the retention claim holds: a speed-up to less is none",
        bar=f'>= {published.ALPHARL_SPEED_UP:g} ("up to 2.5 speedup", in steps)',
        control="the retention row must hold too: a speed-up to a worse model is none",
        needs=needs,
        measure=_saved(unit),
        note=note,
    )


CLAIMS = (
    Claim(
        "alpharl_accuracy",
        f"{_AT}: relative accuracy",
        source=published.PAPER,
        published=published.ALPHARL_RETENTION,
        rule=f"{_ALPHARL} keeps the published share of the full run's accuracy, and beats {_LAST} beyond noise",
        bar=">= the paper's own table for the algorithm (GRPO 49.42/51.52, RLOO 48.52/50.82, DAPO 53.31/53.38), else "
        f"{published.ALPHARL_RETENTION:g}",
        control=f"must beat `{_LAST}`, the checkpoint at which it starts. Linear extrapolation is shown beside",
        needs=f"{_ALPHARL} scored in one cell with the full run",
        measure=_retention,
    ),
    Claim(
        "alpharl_gain",
        f"{_AT}: recovered gain",
        source=f"{published.PROJECT}: the paper's retention, read as gain",
        published=published.ALPHARL_RETENTION,
        rule=f"{_ALPHARL} keeps >= {published.ALPHARL_RETENTION:g} of the gain, and beats {_LAST} beyond noise",
        bar=f">= {published.ALPHARL_RETENTION:g} (the paper reports retention only; read as gain it is this project's "
        "bar)",
        control="the same",
        needs=f"{_ALPHARL} scored in one cell with the full run",
        measure=_gain,
    ),
    Claim(
        "alpharl_over_linear",
        f"{_AT}: accuracy over plain linear extrapolation",
        source=published.PROJECT,
        published=None,
        rule=f"{_ALPHARL} - {_LINEAR} > 0",
        bar="> 0",
        control="it is the control",
        needs=f"{_ALPHARL} and {_LINEAR} scored in one cell",
        measure=_over_linear,
    ),
    _speed_up("alpharl_steps", "steps", "RL steps", "a trajectory"),
    _speed_up(
        "alpharl_seconds",
        "seconds",
        "wall-clock, evaluations and fit included",
        "a trajectory with its validation and the ledger of the fit",
        "each run was timed once; the interval is the spread over cells",
    ),
)

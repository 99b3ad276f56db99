"""Claims about AlphaRL: what it keeps from a first part of the run, and what that saves."""

from collections.abc import Iterable

from rlstride.claims import published, verdicts
from rlstride.claims.row import Claim, accuracies, claim_row, named
from rlstride.claims.verdicts import Verdict
from rlstride.config.variants import window_variant
from rlstride.stats.intervals import Interval
from rlstride.stats.pooling import difference, mean_of, pooled_interval, recovered_gain, relative
from rlstride.study.plan import predictions
from rlstride.study.study import Study
from rlstride.tables.evidence import Evidence


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


def alpharl(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """What AlphaRL keeps of the full run, and whether it beats staying and a straight line."""
    window = published.ALPHARL_WINDOW
    alpharl, last, linear = (window_variant(window, method) for method in ("alpharl", "last", "linear"))
    bar, source, kept, advantage, verdict = _retention(algorithm, evidence)
    applicable = alpharl in {prediction.variant for prediction in predictions(evidence.study.spec)}
    asked = alpharl in _predicted(evidence.study)
    common = {"missing": f"{alpharl} scored in one cell with the full run"}
    if asked and not applicable:
        common = {"missing": "3 kept steps in the window: not applicable to runs as short as these"}
    rivals = {name: evidence.interval(relative(name)) for name in (last, linear)}
    yield claim_row(
        "AlphaRL at 40 % of the steps: relative accuracy",
        algorithm,
        evidence,
        source=source,
        published=bar,
        measured=kept,
        cells=len(evidence.having(alpharl, "full")),
        control=named(rivals),
        verdict=verdict,
        rule=f"{alpharl} keeps the published share of the full run's accuracy, and beats {last} beyond noise",
        **common,
    )
    gain = evidence.interval(recovered_gain(alpharl))
    yield claim_row(
        "AlphaRL at 40 % of the steps: recovered gain",
        algorithm,
        evidence,
        source=f"{published.PROJECT}: the paper's retention, read as gain",
        published=published.ALPHARL_RETENTION,
        measured=gain,
        cells=len(evidence.having(alpharl, "base", "full")),
        control=named({name: evidence.interval(recovered_gain(name)) for name in rivals}),
        verdict=verdicts.all_of([verdicts.at_least(gain, published.ALPHARL_RETENTION), verdicts.beats(advantage)]),
        rule=f"{alpharl} keeps >= {published.ALPHARL_RETENTION:g} of the gain, and beats {last} beyond noise",
        **common,
    )
    over_linear = evidence.interval(difference(alpharl, linear))
    yield claim_row(
        "AlphaRL at 40 % of the steps: accuracy over plain linear extrapolation",
        algorithm,
        evidence,
        source=published.PROJECT,
        published=None,
        measured=over_linear,
        cells=len(evidence.having(alpharl, linear)),
        control=accuracies(evidence, alpharl, linear),
        verdict=verdicts.beats(over_linear),
        rule=f"{alpharl} - {linear} > 0",
        missing=f"{alpharl} and {linear} scored in one cell",
    )


def speed_up(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """Whether it saves what is published, in steps and with all costs in seconds."""
    costs = evidence.costs.get(published.ALPHARL_WINDOW, {})
    kept = _retention(algorithm, evidence)[-1]
    for unit, name in (("steps", "RL steps"), ("seconds", "wall-clock, evaluations and fit included")):
        timed = {cell: cost for cell, cost in costs.items() if f"full_{unit}" in cost}
        ratio = pooled_interval(timed, relative(f"full_{unit}", f"window_{unit}"))
        spent = [pooled_interval(timed, mean_of(f"{part}_{unit}")).value for part in ("full", "window")]
        yield claim_row(
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


def _predicted(study: Study) -> set[str]:
    asked = study.spec.extrapolation
    return {window_variant(window, method) for window in asked.windows for method in asked.methods}

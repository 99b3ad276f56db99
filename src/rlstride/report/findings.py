"""The report's headline sentences, computed over all RL cells of a study."""

import math

import pandas as pd

from rlstride.claims import published
from rlstride.claims.table import CLAIMS
from rlstride.config.variants import window_variant
from rlstride.stats.intervals import Interval
from rlstride.stats.pooling import Statistic, difference, having, mean_of, pooled_interval, recovered_gain, relative
from rlstride.study.plan import planned_jumps
from rlstride.study.study import Study
from rlstride.tables.evidence import Evidence, format_interval, gather
from rlstride.tables.results import StudyResults
from rlstride.tables.strides import summarised


def headline_findings(results: StudyResults, claims: pd.DataFrame, ranks: pd.DataFrame) -> list[str]:
    """A sentence on how many ranks the gain needs, one on learning and rank-1 dominance, one on prediction.

    Args:
        results: the study's.
        claims: claims.csv.
        ranks: ranks.csv; without rows, the first sentence is left out. The others say so where their data are missing.
    """
    study = results.study
    evidence = gather(results, study.rl_cells)
    claims = claims[claims["algorithm"].isin([cell.algorithm for cell in study.rl_cells])]
    return [*_ranks(ranks, study), _dominance(evidence, claims), _prediction(evidence, claims)]


def stride_finding(strides: pd.DataFrame) -> str:
    """A sentence on what striding saves, and on whether it does harm.

    Args:
        strides: strides.csv.
    """
    told = summarised(strides)
    pairs = f"{told['pairs']} pair{'' if told['pairs'] == 1 else 's'} of runs"
    if not told["pairs"]:
        return "No striding run stands beside a plain one that gained anything, so there is nothing to say of strides."
    never = f" ({told['never']} of them not in as many steps)" if told["never"] else ""
    lower = f"{told['lower']} of {told['ends']} end lower on test problems beyond noise"
    ends = lower if told["ends"] else "their ends were not scored on test problems"
    return (
        f"In the median of {pairs} the striding one takes {told['steps_ratio']:.2f} of plain RL's steps and "
        f"{told['seconds_ratio']:.2f} of its seconds to plain RL's last validation accuracy{never}, and "
        f"{told['steps_ratio_0.5']:.2f} of the steps to half of its gain; {ends}."
    )


def jump_findings(results: StudyResults, table: pd.DataFrame) -> list[str]:
    """A sentence on each jump of a study, pooled over its runs.

    Args:
        results: the study's.
        table: jumps.csv.
    """
    study = results.study
    scores = results.last_scores(study.jumping_cells)
    found = []
    for name, planned in planned_jumps(study.spec).items():
        cells = having(scores, planned.variant, "base", "full")
        rows = table[(table["jump"] == name) & (table["decoding"] == results.headline)]
        if not cells or rows.empty:
            found.append(f"{name} was not run.")
            continue
        then = "ends there" if planned.jump.until is None else f"trains on to step {planned.last_step}"
        last = window_variant(planned.jump.end, "last")
        more = pooled_interval(having(cells, last), difference(planned.variant, last))
        over = f" (less the full run's at that step: {format_interval(more)})" if math.isfinite(more.value) else ""
        share = 1 / rows["seconds_speed_up"].astype(float)
        cost = f"{share.mean():.2f} of the full run's seconds" if share.notna().any() else "seconds that are not known"
        runs = "1 run" if len(cells) == 1 else f"{len(cells)} runs"
        accuracy, gain = (
            format_interval(pooled_interval(cells, statistic))
            for statistic in (mean_of(planned.variant), recovered_gain(planned.variant))
        )
        found.append(
            f"{name}: a run that puts in what {planned.jump.method} predicts after step {planned.window_step} of "
            f"{study.spec.training.steps}, and {then}, has an accuracy of {accuracy}{over}, "
            f"and {gain} of the full run's gain, for {cost} with every cost inside ({runs})."
        )
    return found


def _ranks(ranks: pd.DataFrame, study: Study) -> list[str]:
    """Whether few directions carry the gain, over all runs and, where there are several, model by model."""
    ranks = ranks[ranks["step"] == ranks["step"].max()]
    together = ranks[ranks["pool"] == "rl"]
    if together.empty:
        return []
    row = together.iloc[0]
    share = format_interval(Interval(row["rank_1_share"], row["rank_1_share_low"], row["rank_1_share_high"]))
    runs = "1 run" if row["cells"] == 1 else f"{row['cells']} runs"
    models = {row["of"]: row for _, row in ranks[ranks["pool"] == "model"].iterrows()}
    each = [f"{name} {_rank(models[name])}" for name in study.models if name in models]
    beside = f" By model: {', '.join(each)}." if len(each) > 1 else ""
    return [
        f"Of what an edit of all ranks in the layers keeps of the gain, rank 1 keeps {share} ({runs}); "
        f"nine tenths need rank {_rank(row)}.{beside}"
    ]


def _rank(row: pd.Series) -> str:
    """The rank needed with its interval, and the base's accuracy: 4 [2, 4] from 0.380."""
    if not math.isfinite(row["rank_needed"]):
        return "none in particular (no gain)"

    def shown(rank: float) -> str:
        return f"{rank:.0f}" if rank <= row["ranks_to"] else f"over {row['ranks_to']}"

    bounds = [row["rank_needed_low"], row["rank_needed_high"]]
    interval = f" [{', '.join(map(shown, bounds))}]" if all(map(math.isfinite, bounds)) else ""
    return f"{shown(row['rank_needed'])}{interval} from a base at {row['base']:.3f}"


def _dominance(evidence: Evidence, claims: pd.DataFrame) -> str:
    full, base, frozen = (evidence.interval(mean_of(name)) for name in ("full", "base", "frozen"))
    if math.isnan(full.value) or math.isnan(base.value):
        return "No cell has been evaluated yet, so there is nothing to say about what RL learns."
    scored = len(evidence.having("full", "base"))
    control = "" if math.isnan(frozen.value) else f"; the frozen control stays at {frozen.value:.3f}"
    cells = "1 cell" if scored == 1 else f"{scored} cells"
    learns = f"RL takes accuracy from {base.value:.3f} to {full.value:.3f} (mean over {cells}{control})"
    kept, gain = evidence.interval(relative("rank_1")), evidence.interval(recovered_gain("rank_1"))
    if math.isnan(kept.value):
        return f"{learns}; rank-1 models were not run."
    verdict = _verdicts(claims, "rank_1_gain")
    random = evidence.interval(relative("rank_1_random"))
    beside = "" if math.isnan(random.value) else f" (a random rank-1 update of equal norm: {random.value:.3f})"
    return (
        f"{learns}; the rescaled rank-1 part of its update keeps {format_interval(kept)} of the full run's accuracy"
        f"{beside} and {format_interval(gain)} of the gain, where over {100 * published.RANK_1_RECOVERY:.0f} % "
        f"is published: {verdict}."
    )


def _prediction(evidence: Evidence, claims: pd.DataFrame) -> str:
    names = {method: window_variant(published.ALPHARL_WINDOW, method) for method in ("alpharl", "last", "linear")}
    kept = {method: _known(evidence, relative(name)) for method, name in names.items()}
    alpharl = kept.pop("alpharl")
    if alpharl is None:
        prediction = f"AlphaRL at {100 * published.ALPHARL_WINDOW:.0f} % of the steps was not run"
    else:
        labels = {"last": "the last checkpoint seen keeps", "linear": "plain linear extrapolation"}
        rivals = [f"{labels[method]} {format_interval(interval)}" for method, interval in kept.items() if interval]
        prediction = (
            f"From the first {100 * published.ALPHARL_WINDOW:.0f} % of the steps AlphaRL keeps "
            f"{format_interval(alpharl)} of the full run's accuracy, where over "
            f"{100 * published.ALPHARL_RETENTION:.0f} % is published"
            + (f", and {' and '.join(rivals)}" if rivals else "")
            + f": {_verdicts(claims, 'alpharl_accuracy')}"
        )
    fit, walk = (evidence.of_dynamics(mean_of(name)) for name in ("r2_in_sample", "r2_random_walk"))
    if math.isnan(fit.value):
        return f"{prediction}; linear dynamics were not measured."
    ratio = evidence.of_dynamics(relative("forecast_error", "forecast_error_persistence"))
    return (
        f"{prediction}; linear dynamics fit with R2 {fit.value:.3f} in sample, a random walk with {walk.value:.3f}, "
        f"and forecasts of later steps err {ratio.value:.2f} times as much as persistence: "
        f"{_verdicts(claims, 'linear_dynamics')}."
    )


def _known(evidence: Evidence, statistic: Statistic) -> Interval | None:
    interval = evidence.interval(statistic)
    return None if math.isnan(interval.value) else interval


def _verdicts(claims: pd.DataFrame, id: str) -> str:
    """The verdicts of one claim: once where all algorithms agree, else by algorithm."""
    rows = claims[claims["id"] == CLAIMS[id].id]
    by_verdict = rows.groupby("verdict", sort=False)["algorithm"].agg(list)
    if len(by_verdict) == 1:
        return str(by_verdict.index[0])
    return "; ".join(f"{verdict} with {', '.join(names)}" for verdict, names in by_verdict.items())

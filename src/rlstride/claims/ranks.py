"""Claims about what RL does, and about what an update of few ranks keeps of it."""

from collections.abc import Callable

from rlstride.claims import published, verdicts
from rlstride.claims.claim import Claim, Found, accuracies, compared, named
from rlstride.config.nulls import NULL_VARIANTS
from rlstride.config.variants import IN_SCOPE_FULL
from rlstride.stats.pooling import Statistic, difference, recovered_gain, relative
from rlstride.tables.evidence import Evidence
from rlstride.tables.results import SHARPEST_BASE, STRONGEST_NULL

# Edits with the whole update's norm and one triplet of each matrix, but not the leading one.
_EQUAL_NORM = ("rank_1_random", "rank_1_random_u", "rank_1_random_v", "rank_1_bottom", "single_2")


def _gain_over(other: str) -> Callable[[str, Evidence], Found]:
    def measure(algorithm: str, evidence: Evidence) -> Found:
        control = accuracies(evidence, "full", other)
        return compared(
            evidence, "full", other, control, lambda gain: verdicts.at_least(gain, published.LEARNING_TARGET)
        )

    return measure


def _beyond_sharpening(algorithm: str, evidence: Evidence) -> Found:
    control = accuracies(evidence, "full", "base", SHARPEST_BASE)
    return compared(evidence, "full", SHARPEST_BASE, control, verdicts.beats)


def _kept_by_nulls(algorithm: str, evidence: Evidence) -> Found:
    kept = evidence.interval(recovered_gain(STRONGEST_NULL))
    asked = [*evidence.study.spec.nulls.asked, SHARPEST_BASE]
    return Found(
        measured=kept,
        cells=len(evidence.having(STRONGEST_NULL, "base", "full", *asked)),
        control=named({name: evidence.interval(recovered_gain(name)) for name in asked}),
        verdict=verdicts.at_most(kept, published.NULL_KEEPS),
    )


def _kept_by_rank_1(statistic: Callable[[str], Statistic], *references: str) -> Callable[[str, Evidence], Found]:
    def measure(algorithm: str, evidence: Evidence) -> Found:
        asked = [control for control in _EQUAL_NORM if control in evidence.study.spec.ablation.variants]
        equal_norm = asked or _EQUAL_NORM[:1]
        advantages = [evidence.interval(difference("rank_1", control)) for control in equal_norm]
        recovery = evidence.interval(statistic("rank_1"))
        beside = (*equal_norm, "rank_1_unscaled", IN_SCOPE_FULL)
        return Found(
            measured=recovery,
            cells=len(evidence.having("rank_1", *references)),
            control=named({control: evidence.interval(statistic(control)) for control in beside}),
            verdict=verdicts.all_of(
                [verdicts.at_least(recovery, published.RANK_1_RECOVERY), *map(verdicts.beats, advantages)]
            ),
        )

    return measure


def _share_in_scope(algorithm: str, evidence: Evidence) -> Found:
    share = evidence.interval(recovered_gain("rank_1", full=IN_SCOPE_FULL))
    controls = {
        "in_scope_full of the gain": evidence.interval(recovered_gain(IN_SCOPE_FULL)),
        "rank_1_in_all of the gain": evidence.interval(recovered_gain("rank_1_in_all")),
        "rank_4 of the in-scope gain": evidence.interval(recovered_gain("rank_4", full=IN_SCOPE_FULL)),
    }
    return Found(
        measured=share,
        cells=len(evidence.having("rank_1", "base", IN_SCOPE_FULL)),
        control=named(controls),
        verdict=verdicts.at_least(share, published.RANK_1_RECOVERY),
    )


def _learns(id: str, other: str, name: str) -> Claim:
    return Claim(
        id,
        f"RL learns: accuracy gained over {name}",
        source=f"{published.PROJECT}: its target",
        published=published.LEARNING_TARGET,
        rule=f"full - {other} >= {published.LEARNING_TARGET:g}",
        bar=f"full - {other} >= {published.LEARNING_TARGET:g} (this project's target for its testbed: without a gain "
        "there is nothing to reproduce)",
        control="the difference is the control",
        needs=f"full and {other} scored in one cell",
        measure=_gain_over(other),
    )


def _dominates(id: str, name: str, statistic: Callable[[str], Statistic], *references: str) -> Claim:
    return Claim(
        id,
        f"Rank-1 dominance: {name} of the rank-1 model",
        source=f"{published.PAPER}, abstract (over 99 %)",
        published=published.RANK_1_RECOVERY,
        rule=f"rank_1 recovers >= {published.RANK_1_RECOVERY:g}, and beats every scored control of equal norm",
        bar=f'>= {published.RANK_1_RECOVERY:g} ("over 99 % of performance gains", {published.PAPER}, abstract)',
        control="must beat each of these that was scored, all of the update's norm: `rank_1_random` (random "
        "directions), `rank_1_random_u` and `rank_1_random_v` (on one side), `rank_1_bottom` (the other end of the "
        "spectrum), `single_2` (the second triplet alone). Shown beside: `rank_1_unscaled` and `in_scope_full`",
        needs=f"rank_1, {' and '.join(references)} scored in one cell",
        measure=_kept_by_rank_1(statistic, *references),
    )


CLAIMS = (
    _learns("learns_over_base", "base", "the base"),
    _learns("learns_over_frozen", "frozen", "the frozen control"),
    _dominates("rank_1_accuracy", "relative accuracy", relative, "full"),
    _dominates("rank_1_gain", "recovered gain", recovered_gain, "base", "full"),
    Claim(
        "beyond_sharpening",
        "RL does more than sharpen: accuracy gained over the base at its best decoding",
        source=f"{published.PROJECT}: the null of a lower temperature",
        published=None,
        rule="full - base at its best decoding > 0",
        bar="> 0: else drawing from the base more narrowly gives as much",
        control="the base at whichever of the study's decodings it scores best, on the same problems",
        needs="full and base scored in one cell",
        measure=_beyond_sharpening,
    ),
    Claim(
        "gain_is_trained",
        "RL's gain needs training: what the untrained base gains by being asked in another way",
        source=f"{published.PROJECT}: forced format, other prompts, solved examples and a lower temperature",
        published=None,
        rule=f"the strongest null keeps <= {published.NULL_KEEPS:.3g} of full - base",
        bar=f"<= {published.NULL_KEEPS:.3g} of the gain: else what edited and predicted models keep of it says little",
        control="each null's share of the gain: " + ", ".join(f"`{name}`" for name in (*NULL_VARIANTS, SHARPEST_BASE)),
        needs="base, full and all nulls that the study asks for, scored in one cell",
        measure=_kept_by_nulls,
    ),
    Claim(
        "rank_1_in_scope_gain",
        "Rank-1 dominance: share of the in-scope gain in the rank-1 model",
        source=f"{published.PROJECT}: the paper's figure, of what these matrices can carry",
        published=published.RANK_1_RECOVERY,
        rule=f"rank_1 recovers >= {published.RANK_1_RECOVERY:g} of what in_scope_full gains over the base",
        bar=f">= {published.RANK_1_RECOVERY:g} of what `in_scope_full` gains (this project's reading: rank, apart from "
        "what the paper's scope leaves out)",
        control="shown beside: what `in_scope_full` and `rank_1_in_all` keep of the whole gain, and `rank_4` of the "
        "in-scope gain",
        needs=f"rank_1, base and {IN_SCOPE_FULL} scored in one cell",
        measure=_share_in_scope,
    ),
)

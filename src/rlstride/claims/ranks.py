"""Claims about what RL does, and about what an update of few ranks keeps of it."""

from collections.abc import Iterable

from rlstride.claims import published, verdicts
from rlstride.claims.row import Claim, accuracies, claim_row, named
from rlstride.config.variants import IN_SCOPE_FULL
from rlstride.stats.pooling import difference, recovered_gain, relative
from rlstride.tables.evidence import Evidence

# Edits with the whole update's norm and one triplet of each matrix, but not the leading one.
_EQUAL_NORM = ("rank_1_random", "rank_1_random_u", "rank_1_random_v", "rank_1_bottom", "single_2")


def learning(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """What RL gains over the base, and over the frozen control."""
    for other, name in (("base", "the base"), ("frozen", "the frozen control")):
        gain = evidence.interval(difference("full", other))
        cells = len(evidence.having("full", other))
        yield claim_row(
            f"RL learns: accuracy gained over {name}",
            algorithm,
            evidence,
            source=f"{published.PROJECT}: its target",
            published=published.LEARNING_TARGET,
            measured=gain,
            cells=cells,
            control=accuracies(evidence, "full", other),
            verdict=verdicts.at_least(gain, published.LEARNING_TARGET),
            rule=f"full - {other} >= {published.LEARNING_TARGET:g}",
            missing=f"full and {other} scored in one cell",
        )


def dominance(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """What the rank-1 model keeps of accuracy and gain, beside controls of equal norm."""
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
        yield claim_row(
            f"Rank-1 dominance: {name} of the rank-1 model",
            algorithm,
            evidence,
            source=f"{published.PAPER}, abstract (over 99 %)",
            published=published.RANK_1_RECOVERY,
            measured=recovery,
            cells=len(evidence.having("rank_1", *references)),
            control=named(controls),
            verdict=verdicts.all_of(
                [verdicts.at_least(recovery, published.RANK_1_RECOVERY), *map(verdicts.beats, advantages)]
            ),
            rule=f"rank_1 recovers >= {published.RANK_1_RECOVERY:g}, and beats every scored control of equal norm",
            missing=f"rank_1, {' and '.join(references)} scored in one cell",
        )


def within_scope(algorithm: str, evidence: Evidence) -> Iterable[Claim]:
    """Rank or scope: what rank 1 keeps of the gain that any edit of these matrices can keep."""
    share = evidence.interval(recovered_gain("rank_1", full=IN_SCOPE_FULL))
    controls = {
        "in_scope_full of the gain": evidence.interval(recovered_gain(IN_SCOPE_FULL)),
        "rank_1_in_all of the gain": evidence.interval(recovered_gain("rank_1_in_all")),
        "rank_4 of the in-scope gain": evidence.interval(recovered_gain("rank_4", full=IN_SCOPE_FULL)),
    }
    yield claim_row(
        "Rank-1 dominance: share of the in-scope gain in the rank-1 model",
        algorithm,
        evidence,
        source=f"{published.PROJECT}: the paper's figure, of what these matrices can carry",
        published=published.RANK_1_RECOVERY,
        measured=share,
        cells=len(evidence.having("rank_1", "base", IN_SCOPE_FULL)),
        control=named(controls),
        verdict=verdicts.at_least(share, published.RANK_1_RECOVERY),
        rule=f"rank_1 recovers >= {published.RANK_1_RECOVERY:g} of what in_scope_full gains over the base",
        missing=f"rank_1, base and {IN_SCOPE_FULL} scored in one cell",
    )

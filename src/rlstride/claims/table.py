"""The claims table: for each claim the published figure, the measured one, its control, and a verdict from them.

docs/claims.md states the rules for people; rlstride.claims.verdicts holds them.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict

import pandas as pd

from rlstride.claims import extrapolation as extrapolation_claims
from rlstride.claims import movement as movement_claims
from rlstride.claims import ranks as rank_claims
from rlstride.claims.row import Claim
from rlstride.tables.evidence import Evidence, gather
from rlstride.tables.results import StudyResults

_FAMILIES: tuple[Callable[[str, Evidence], Iterable[Claim]], ...] = (
    rank_claims.learning,
    rank_claims.dominance,
    rank_claims.within_scope,
    movement_claims.norm_share,
    movement_claims.linear_dynamics,
    movement_claims.lines_in_the_step,
    extrapolation_claims.alpharl,
    extrapolation_claims.speed_up,
)


def claims_table(results: StudyResults) -> pd.DataFrame:
    """Every claim for every algorithm of a study, pooled over its models and seeds.

    Args:
        results: the study's.

    Returns:
        One row for each claim and algorithm, claims together; where its data are missing, the verdict is ``not run``.
    """
    by_algorithm = {
        name: gather(results, [cell for cell in results.study.cells if cell.algorithm == name])
        for name in results.study.algorithms
    }
    rows = []
    for family in _FAMILIES:
        found = [list(family(name, evidence)) for name, evidence in by_algorithm.items()]
        rows += [claim for same_claim in zip(*found, strict=True) for claim in same_claim]
    return pd.DataFrame([asdict(row) for row in rows], columns=list(Claim.__dataclass_fields__))

"""Every claim: the one list, and its table. A new one is an entry of one of the modules named here."""

from collections.abc import Mapping
from dataclasses import asdict

import pandas as pd

from rlstride.claims import extrapolation, movement, ranks, rounding
from rlstride.claims.claim import Claim, ClaimRow
from rlstride.study.paths import StudyPaths
from rlstride.tables.collect import write_table
from rlstride.tables.evidence import gather
from rlstride.tables.results import StudyResults

_ALL = (*ranks.CLAIMS, *movement.CLAIMS, *rounding.CLAIMS, *extrapolation.CLAIMS)
CLAIMS: Mapping[str, Claim] = {claim.id: claim for claim in _ALL}


def judge(results: StudyResults) -> pd.DataFrame:
    """Judges a study's claims, and writes ``tables/claims.csv``. Returns what is written."""
    claims = claims_table(results)
    write_table(StudyPaths(results.folder).tables / "claims.csv", claims)
    return claims


def rules() -> str:
    """The claims with their bars and controls, as a table in Markdown."""
    rows = [
        f"| `{claim.id}` | {claim.title} | {claim.bar} | {claim.control} |".replace("|D|F", r"\|D\|F")
        for claim in CLAIMS.values()
    ]
    return "\n".join(["| id | claim | bar | control |", "|---|---|---|---|", *rows, ""])


def claims_table(results: StudyResults) -> pd.DataFrame:
    """Every claim that a study asks about for each of its algorithms, pooled over its models and seeds.

    Args:
        results: the study's.

    Returns:
        One row for each claim and algorithm, claims together; where its data are missing, the verdict is ``not run``.
    """
    study = results.study
    evidence = {
        name: gather(results, [cell for cell in study.cells if cell.algorithm == name]) for name in study.algorithms
    }
    asked = [claim for claim in CLAIMS.values() if claim.is_asked(study)]
    rows = [claim.row(name, evidence[name]) for claim in asked for name in study.algorithms]
    return pd.DataFrame([asdict(row) for row in rows], columns=list(ClaimRow.__dataclass_fields__))

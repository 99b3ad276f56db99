"""The verb ``judge``."""

from rlstride.cli.app import imports, show, verb
from rlstride.cli.options import Json, Results, StudyOfResults

_SHOWN = ("claim", "algorithm", "published", "measured", "low", "high", "verdict")


@verb
def judge(results: Results, study: StudyOfResults = None, json: Json = False) -> None:
    """Give every published claim its verdict, from what the cells measured: tables/claims.csv.

    Example: rlstride judge results/demo
    """
    with imports():
        from rlstride.claims.table import judge
        from rlstride.study.load import load_study
        from rlstride.tables.results import StudyResults

    claims = judge(StudyResults(results, load_study(study or results / "study.yaml")))
    rows = claims[["id", *_SHOWN] if json else list(_SHOWN)].to_dict("records")
    show([{str(name): value for name, value in row.items()} for row in rows], "claims", as_json=json)

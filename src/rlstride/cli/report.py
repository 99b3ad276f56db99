"""The verb ``report``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Force, OutFolder, Results, StudyOfResults


@verb
def report(
    results: Results,
    out: OutFolder,
    study: StudyOfResults = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="What rlstride judge wrote (default: judge the claims now)."),
    ] = None,
    force: Force = False,
) -> None:
    """Claims, figures and one HTML page from the study's tables; after rlstride collect.

    Example: rlstride report results/demo --out results/demo/report
    """
    with imports("report"):
        from rlstride.report.page import write_report
        from rlstride.study.load import load_study

    write_report(results, load_study(study or results / "study.yaml"), out, claims_file=claims, force=force)

"""The verb ``track``."""

from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Results, StudyOfResults


@verb
def track(
    results: Results,
    study: StudyOfResults = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Default: the study's, else sqlite:///RESULTS_DIR/../mlflow.db."),
    ] = None,
) -> None:
    """Write the ledgers, tables and figures to MLflow.

    Example: rlstride track results/demo --tracking-uri http://localhost:5000
    """
    with imports("track"):
        from rlstride.study.load import load_study
        from rlstride.tracking.mlflow_writer import track

    found = load_study(study or results / "study.yaml")
    beside = f"sqlite:///{(results.parent / 'mlflow.db').resolve()}"
    track(results, found, tracking_uri or found.spec.tracking.uri or beside)

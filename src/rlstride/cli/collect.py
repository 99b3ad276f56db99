"""The verb ``collect``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Names, Results, names


@verb
def collect(
    results: Results,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only this study's cells (default: every cell found).")
    ] = None,
    tables: Annotated[
        Names | None,
        typer.Option(metavar="NAME[,NAME]", parser=names, help="Only these; see rlstride list tables (default: all)."),
    ] = None,
) -> None:
    """Gather the cells' Parquet files into the study's CSV tables.

    Example: rlstride collect results/demo --study config/config.yaml --tables accuracy,learning
    """
    with imports():
        from rlstride.study.load import load_study
        from rlstride.tables.collect import collect
        from rlstride.tables.specs import TABLES

    collect(results, load_study(study) if study else None, tables or tuple(TABLES))

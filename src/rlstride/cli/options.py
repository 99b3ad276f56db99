"""Arguments and options that several verbs have, each declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlstride.errors import RequestError


class Names(list[str]):
    """Names that are separated by commas."""


class Integers(list[int]):
    """Whole numbers that are separated by commas."""


class Numbers(list[float]):
    """Numbers that are separated by commas."""


def names(text: str) -> Names:
    """``a,b`` as a list."""
    return Names(part.strip() for part in text.split(",") if part.strip())


def integers(text: str) -> Integers:
    """``1,2`` as a list."""
    try:
        return Integers(int(part) for part in names(text))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers separated by commas, not {text!r}") from error


def numbers(text: str) -> Numbers:
    """``0.2,0.4`` as a list."""
    try:
        return Numbers(float(part) for part in names(text))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers separated by commas, not {text!r}") from error


def positive(text: str, flag: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise RequestError(f"{flag}: expected a whole number from 1, not {text!r}")
    return int(text)


Trajectory = Annotated[Path, typer.Argument(metavar="TRAJECTORY", help="The folder of a trajectory.")]
Results = Annotated[Path, typer.Argument(metavar="RESULTS_DIR", help="results/{study}.")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that is written.")]
OutTable = Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="The table that is written.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier call wrote there.")]
StudyFile = Annotated[Path, typer.Option("--study", metavar="FILE", help="The study.")]
StudyOfResults = Annotated[
    Path | None, typer.Option("--study", metavar="FILE", help="The study (default: RESULTS_DIR/study.yaml).")
]
Cell = Annotated[
    str | None,
    typer.Option("--cell", metavar="MODEL/ALGORITHM/SEED", help="Whose rows they are (default: the manifest's)."),
]
Steps = Annotated[
    Integers | None,
    typer.Option(
        "--steps", metavar="N,N", parser=integers, help="These kept steps alone; 0 is the base (default: all)."
    ),
]
Decoding = Annotated[
    str, typer.Option("--decoding", metavar="NAME", help="Which of the evaluations' decodings is meant.")
]
Device = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where tensors are computed.")]
ModelKey = Annotated[
    str | None,
    typer.Option(
        "--model-key",
        metavar="KEY",
        help="Which of several models inside each checkpoint: what precedes its tensors' names, such as model or ema.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

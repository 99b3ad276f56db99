"""The verb ``inspect``."""

from typing import Annotated

import typer

from rlstride.cli.app import show, verb
from rlstride.cli.options import Json, ModelKey
from rlstride.errors import WorkError


@verb
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A trajectory, a run's folder, a checkpoint, hf://org/repo@revision.")
    ],
    base: Annotated[str | None, typer.Option(metavar="BASE", help="The model that the checkpoints should fit.")] = None,
    model_key: ModelKey = None,
    json: Json = False,
) -> None:
    """Say what a path is, and what is wrong with it; weights are not read.

    Example: rlstride inspect runs/verl --base Qwen3-4B
    """
    from rlstride.trajectory.inspect import inspect

    found = inspect(path, base, model_key)
    if json:
        show([{"path": path, "facts": found.facts, "problems": found.problems}], "", as_json=True)
    else:
        print("\n".join([*found.facts, *(f"problem: {problem}" for problem in found.problems)]))
    if found.problems:
        raise WorkError(f"{path}: problems found: {len(found.problems)}")

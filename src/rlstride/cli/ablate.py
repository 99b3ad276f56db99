"""The verb ``ablate``."""

from typing import Annotated, Literal

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Force, OutFolder, Trajectory, positive
from rlstride.config.variants import Scope
from rlstride.errors import RequestError


@verb
def ablate(
    trajectory: Trajectory,
    out: OutFolder,
    step: Annotated[str, typer.Option(metavar="N|last", help="The kept step whose update is edited.")] = "last",
    rank: Annotated[
        int | None, typer.Option(metavar="K", help="One model: the best rank-K update, written to --out.")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME|FILE.yaml",
            help="Several models, such as rank_1,in_scope_full: one folder each in --out.",
        ),
    ] = None,
    rescale: Annotated[
        Literal["frobenius", "none"], typer.Option(help="With --rank: give the edit the full update's norm.")
    ] = "frobenius",
    scale: Annotated[float, typer.Option(help="With --rank: a further factor on the update.")] = 1.0,
    scope: Annotated[
        Scope,
        typer.Option(
            help="With --rank: which tensors change; linear: every matrix inside the layers, all: every other tensor "
            "too."
        ),
    ] = "linear",
    force: Force = False,
) -> None:
    """Write edited models of one kept step.

    Example: rlstride ablate runs/llama/trajectory --rank 1 --out models/rank_1
    """
    if (rank is None) == (variants is None):
        raise RequestError("give either --rank, for one model, or --variants, for several")
    with imports():
        from rlstride.config.variants import AblationVariant, read_variants
        from rlstride.edits.step_edits import write_ablations
        from rlstride.trajectory.store import Trajectory

    run = Trajectory(trajectory)
    number = run.full_last_step if step == "last" else positive(step, "--step")
    if rank is not None:
        if rank < 1:
            raise RequestError(f"--rank: expected a whole number from 1, not {rank}")
        folders = {out: AblationVariant(out.name, rank, rescale, scale=scale, scope=scope)}
    else:
        folders = {out / variant.name: variant for variant in read_variants(variants or "")}
    write_ablations(run, number, folders, force=force)

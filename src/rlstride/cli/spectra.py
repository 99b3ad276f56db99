"""The verb ``spectra``."""

from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Device, Force, Numbers, OutTable, Trajectory, numbers, positive


@verb
def spectra(
    trajectory: Trajectory,
    out: OutTable,
    rank: Annotated[str, typer.Option(metavar="K|full", help="Singular triplets kept for each matrix.")] = "8",
    tolerances: Annotated[
        Numbers | None, typer.Option(metavar="T,T", parser=numbers, help="Tolerances of the sparsity sweep.")
    ] = None,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Norms, singular triplets, ranks and sparsity of every kept update.

    Example: rlstride spectra runs/llama/trajectory --out spectra.parquet
    """
    with imports():
        from rlstride.spectra.table import DEFAULT_TOLERANCES, write_spectra

    triplets = None if rank == "full" else positive(rank, "--rank")
    write_spectra(
        trajectory, out, rank=triplets, tolerances=tolerances or DEFAULT_TOLERANCES, device=device, force=force
    )

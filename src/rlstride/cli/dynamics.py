"""The verb ``dynamics``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Decoding, Force, OutTable, Trajectory


@verb
def dynamics(
    trajectory: Trajectory,
    evaluations: Annotated[
        Path, typer.Option(metavar="FILE", help="Accuracy of the kept steps, from rlstride evaluate.")
    ],
    out: OutTable,
    decoding: Decoding = "t1.0",
    force: Force = False,
) -> None:
    """How linear the trajectory is, compared with its nulls and with held-out future steps.

    Example: rlstride dynamics runs/llama/trajectory --evaluations validation.parquet --out dynamics.parquet
    """
    with imports():
        from rlstride.dynamics.table import write_dynamics

    write_dynamics(trajectory, evaluations, out, decoding=decoding, force=force)

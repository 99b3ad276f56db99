"""The verb ``rounding``."""

from typing import Annotated

import typer

from rlstride.cli.app import imports, show, verb
from rlstride.cli.options import Device, Force, Integers, Json, Numbers, OutTable, Trajectory, integers, numbers


@verb
def rounding(
    trajectory: Trajectory,
    out: OutTable,
    steps: Annotated[
        Integers | None, typer.Option(metavar="N,N", parser=integers, help="These kept steps (default: the last).")
    ] = None,
    factors: Annotated[
        Numbers | None,
        typer.Option(
            metavar="F,F",
            parser=numbers,
            help="The run's update times these factors too: how all depends on its size (default: 0.3 and 3).",
        ),
    ] = None,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """What norm share and sparsity of an update are in float32, and in bfloat16 files.

    Beside both stands what a normal update of the same norm would show after the same rounding. The run has to have
    float32 checkpoints (masters).

    Example: rlstride rounding runs/llama/trajectory --out rounding.parquet
    """
    with imports():
        import pandas as pd

        from rlstride.spectra.rounding import FACTORS, write_rounding
        from rlstride.tables.rounding import summary

    write_rounding(trajectory, out, steps=steps, factors=factors or FACTORS, device=device, force=force)
    found = summary(pd.read_parquet(out))
    shown = ["step", "update", "factor", "dtype", "relative", "share_sum", "energy_4", "unchanged_1e-05"]
    shown += ["expected_share_sum", "expected_unchanged_1e-05"]
    rows = found[shown].astype(object).where(found[shown].notna(), None).to_dict("records")
    show([{name: row[name] for name in shown} for row in rows], out.name, as_json=json)

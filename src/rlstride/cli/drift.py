"""The verb ``drift``."""

from typing import Annotated

import typer

from rlstride.cli.app import imports, show_file, verb
from rlstride.cli.options import Cell, Device, Force, Json, OutTable, Steps, StudyFile, Trajectory


@verb
def drift(
    trajectory: Trajectory,
    study: StudyFile,
    out: OutTable,
    cell: Cell = None,
    steps: Steps = None,
    variants: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME|FILE.yaml", help="These edits of the last kept step too, made in memory."),
    ] = None,
    problems: Annotated[
        int | None, typer.Option(metavar="N", help="Validation problems (default: the study's).")
    ] = None,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """How far kept steps and edited models are from the base in what they say (KL).

    Example: rlstride drift runs/llama/trajectory --study config/config.yaml --out drift.parquet
    """
    with imports("evaluate"):
        from rlstride.config.variants import read_variants
        from rlstride.evaluation.drift import write_drift
        from rlstride.study.load import load_study

    found = load_study(study)
    write_drift(
        found,
        found.cell(cell) if cell else None,
        trajectory,
        out,
        steps=steps,
        variants=[] if variants is None else read_variants(variants),
        problems=problems,
        device=device,
        force=force,
    )
    show_file(out, ["variant", "step", "kl_to_base", "kl_to_base_low", "kl_to_base_high"], as_json=json)

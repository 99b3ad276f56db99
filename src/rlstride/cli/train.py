"""The verb ``train``."""

from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import imports, is_debugged, verb
from rlstride.cli.options import Force, OutFolder, StudyFile, positive


@verb
def train(
    study: StudyFile,
    cell: Annotated[str, typer.Option(metavar="MODEL/ALGORITHM/SEED", help="Which run of the study.")],
    out: OutFolder,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Optimiser, RNG and data order of an unfinished run (default: DIR/../training)."
        ),
    ] = None,
    jump: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Cut the run short by this one of the study's jumps (default: train every step)."
        ),
    ] = None,
    processes: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Share every step among N processes on this machine, each with a GPU of its own on cuda.",
        ),
    ] = "1",
    force: Force = False,
) -> None:
    """Run one cell's RL and keep its trajectory; an interrupted run resumes.

    Example: rlstride train --study config/config.yaml --cell tiny-llama/grpo/0 --out runs/llama/trajectory
    """
    from rlstride.study.load import load_study

    found = load_study(study)
    run, unfinished = found.cell(cell), state or out.parent / "training"
    if (number := positive(processes, "--processes")) > 1:
        from rlstride.processes import launch_processes

        words = ["train", "--study", study, "--cell", run, "--out", out, "--state", unfinished]
        words += ["--jump", jump] if jump else []
        words += ["--force"] if force else []
        launch_processes(number, [*map(str, words), *(["--debug"] if is_debugged() else [])])
    with imports("train"):
        from rlstride.config.algorithms import ALGORITHMS
        from rlstride.training.launch import train_cell

        ALGORITHMS[found.algorithm(run).trainer].load()  # TRL, too, is imported a quarter faster in here

    train_cell(found, run, out, unfinished, jump, force=force)

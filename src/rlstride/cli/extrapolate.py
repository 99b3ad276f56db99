"""The verb ``extrapolate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlstride.cli.app import imports, verb
from rlstride.cli.options import Decoding, Device, Force, Names, Numbers, OutFolder, Trajectory, names, numbers
from rlstride.errors import RequestError
from rlstride.extras import require

if TYPE_CHECKING:
    from rlstride.evaluation.scorer import ValidationScorer


@verb
def extrapolate(
    trajectory: Trajectory,
    method: Annotated[Names, typer.Option(metavar="NAME[,NAME]", parser=names, help="See rlstride list methods.")],
    window: Annotated[
        Numbers,
        typer.Option(
            metavar="W[,W]",
            parser=numbers,
            help="Share of the steps that may be seen, in (0, 1]; full_shrunk sees all of them.",
        ),
    ],
    out: OutFolder,
    target_accuracy: Annotated[
        float | None, typer.Option(metavar="A", help="The raw accuracy that is extrapolated to (default: 1).")
    ] = None,
    target_step: Annotated[int | None, typer.Option(metavar="T", help="Default: the run's last step.")] = None,
    evaluations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Accuracy of the kept steps, for methods that use it.")
    ] = None,
    decoding: Decoding = "t1.0",
    study: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For methods that choose how far they go: on this study's validation problems, at its headline "
            "decoding.",
        ),
    ] = None,
    device: Device = "cpu",
    where_applicable: Annotated[
        bool,
        typer.Option("--where-applicable", help="A method that is not applicable is no error (default: exit 1)."),
    ] = False,
    force: Force = False,
) -> None:
    """Predict a later model from a first part of the trajectory.

    With several methods or windows, --out is a folder of models.

    Example: rlstride extrapolate runs/llama/trajectory --method linear --window 0.4 --out models/linear
    """
    if target_accuracy is not None and target_step is not None:
        raise RequestError("give --target-accuracy or --target-step, not both")
    with imports():
        from rlstride.config.variants import window_variant
        from rlstride.extrapolation.predict import write_predictions
        from rlstride.extrapolation.registry import method_named
        from rlstride.study.plan import asked_predictions
        from rlstride.trajectory.store import Trajectory

    run = Trajectory(trajectory)
    pairs = asked_predictions([method_named(name).name for name in method], window)
    folders = {out if len(pairs) == 1 else out / window_variant(share, name): (name, share) for share, name in pairs}

    def scorer() -> "ValidationScorer":
        require("evaluate")
        from rlstride.evaluation.scorer import ValidationScorer
        from rlstride.study.load import load_study

        assert study is not None
        return ValidationScorer(load_study(study), Trajectory(trajectory), device)

    write_predictions(
        run,
        folders,
        evaluations=evaluations,
        decoding=decoding,
        target_accuracy=1.0 if target_accuracy is None else target_accuracy,
        target_step=target_step,
        scorer=None if study is None else scorer,
        where_applicable=where_applicable,
        force=force,
    )

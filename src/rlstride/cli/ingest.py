"""The verb ``ingest``."""

from typing import Annotated

import typer

from rlstride.cli.app import verb
from rlstride.cli.options import Force, Integers, ModelKey, OutFolder, integers


@verb
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="The run's folder, or its checkpoints: Hugging Face folders, LoRA adapters, FSDP shards of verl or "
            "torch.distributed.checkpoint, DeepSpeed ZeRO shards, hf://org/repo@step_{n}.",
        ),
    ],
    base: Annotated[
        str, typer.Option(metavar="BASE", help="The model that the run started from: a folder or hf://org/repo.")
    ],
    out: OutFolder,
    steps: Annotated[
        Integers | None,
        typer.Option(metavar="N,N", parser=integers, help="A number for each checkpoint (default: from the names)."),
    ] = None,
    algorithm: Annotated[
        str, typer.Option(metavar="NAME", help="What trained it, as tables shall say it.")
    ] = "unknown",
    seed: Annotated[int, typer.Option(metavar="N", help="Likewise.")] = 0,
    model_key: ModelKey = None,
    force: Force = False,
) -> None:
    """Make a trajectory of a run trained elsewhere; its files stay where they are.

    Example: rlstride ingest runs/verl --base Qwen3-4B --out trajectories/verl
    """
    from rlstride.trajectory.ingest import ingest

    ingest(sources, base, out, steps=steps, algorithm=algorithm, seed=seed, model_key=model_key, force=force)

"""Finds the steps of a run that another trainer wrote, by the names of its folders."""

import re
from dataclasses import dataclass
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.trajectory.sources.recognise import Checkpoint, find_checkpoint

_STEP = re.compile(
    r"(?:.*[_-])?(?:global_?step|checkpoint|step|iter|iteration|update)[_-]?0*(\d+)(?:_hf)?", re.IGNORECASE
)


@dataclass(frozen=True)
class FoundStep:
    """One checkpoint of a foreign run.

    Attributes:
        step: its number; None where its name has none.
        checkpoint: where its weights are.
        origin: its address on the hub, where it came from there.
    """

    step: int | None
    checkpoint: Checkpoint
    origin: str | None = None

    @property
    def place(self) -> str:
        """What to call it in a sentence."""
        return self.origin or str(self.checkpoint.path)


def step_of(name: str) -> int | None:
    """The step in a name such as global_step_50, checkpoint-100, step_7, iter_0000010 or global_step20_hf."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def step_folders(path: Path) -> dict[int, Path]:
    """The folders inside a run's folder that are named after a step, ascending.

    Raises:
        RequestError: two are named after the same step.
    """
    found: dict[int, Path] = {}
    for folder in sorted(below for below in path.iterdir() if below.is_dir()):
        step = step_of(folder.name)
        if step is None:
            continue
        if step in found:
            raise RequestError(f"{path}: {found[step].name} and {folder.name} are both step {step}")
        found[step] = folder
    return dict(sorted(found.items()))


def find_steps(path: Path) -> list[FoundStep]:
    """The checkpoints at a path: the one that it is, or those of the run that it is the folder of.

    Raises:
        RequestError: there is nothing there that can be read.
    """
    if not path.is_dir():
        raise RequestError(f"{path}: there is no such folder")
    whole = path.resolve()
    # From global_step_50/actor too: the step's name may stand above the checkpoint.
    own = next((step for folder in (whole, *whole.parents[:2]) if (step := step_of(folder.name)) is not None), None)
    folders = step_folders(path)
    if not folders or step_of(whole.name) is not None:
        checkpoint = find_checkpoint(path)
        if checkpoint is None:
            raise RequestError(
                f"{path}: no checkpoint here (safetensors, adapter, shards of verl, DeepSpeed or "
                "torch.distributed.checkpoint), and no folder named after a step, such as global_step_50"
            )
        return [FoundStep(own, checkpoint)]
    found = []
    for step, folder in folders.items():
        checkpoint = find_checkpoint(folder)
        if checkpoint is None:
            raise RequestError(f"{folder}: named after a step, but there is no checkpoint in it")
        found.append(FoundStep(step, checkpoint))
    return found

"""Finds the steps of a run that another trainer wrote, by the names of its folders."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.trajectory.sources.hf import INDEX, SINGLE
from rlstride.trajectory.sources.lora import CONFIG as ADAPTER_CONFIG
from rlstride.trajectory.sources.recognise import Checkpoint, find_checkpoint, holds_zero

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
    folders = inner_steps(path)
    if not folders:
        checkpoint = find_checkpoint(path)
        if checkpoint is None:
            raise RequestError(
                f"{path}: no checkpoint here (safetensors, adapter, shards of verl, DeepSpeed or "
                "torch.distributed.checkpoint), and no folder named after a step, such as global_step_50"
                f"{_nearby(path)}"
            )
        return [FoundStep(step_around(path), checkpoint)]
    found = []
    for step, folder in folders.items():
        checkpoint = find_checkpoint(folder)
        if checkpoint is None:
            raise RequestError(f"{folder}: named after a step, but there is no checkpoint in it{_nearby(folder)}")
        found.append(FoundStep(step, checkpoint))
    if holds_weights(path):
        print(f"{path}: the model in the run's own folder has no step's number, and is left out", file=sys.stderr)
    return found


def inner_steps(path: Path) -> dict[int, Path]:
    """The steps of the run that a folder holds; none where the folder is a checkpoint by itself.

    A run's folder may be called like a step (``grpo-iter2``), and a checkpoint may hold one (DeepSpeed's
    ``checkpoint-100/global_step100``).

    Raises:
        RequestError: two are named after the same step.
    """
    folders = step_folders(path)
    own = step_of(path.resolve().name)
    if own is not None and (list(folders) == [own] or all(holds_zero(folder) for folder in folders.values())):
        return {}
    return folders


def holds_weights(path: Path) -> bool:
    """Whether a model lies in a folder itself, as trainers leave the final one above the checkpoints."""
    return any((path / name).is_file() for name in (SINGLE, INDEX, ADAPTER_CONFIG))


def step_around(path: Path) -> int | None:
    """The step that a checkpoint's folder, or one of the two above it, is named after: global_step_50/actor, too."""
    whole = path.resolve()
    return next((step for folder in (whole, *whole.parents[:2]) if (step := step_of(folder.name)) is not None), None)


def _nearby(path: Path) -> str:
    """Where below a folder there is a checkpoint after all, as a part of a sentence."""
    below = [folder for mark in ("*/adapter_config.json", "*/*/adapter_config.json") for folder in path.glob(mark)]
    if below:
        return f"; there is an adapter in {below[0].parent}: give that folder"
    if next(path.glob("zero/*/fp32.pt"), None) or next(path.glob("*/zero/*/fp32.pt"), None):
        return "; this is a universal checkpoint of DeepSpeed: give the ZeRO checkpoint that it was made from"
    if next(path.glob("*/mp_rank_*/model_optim_rng.pt"), None) or next(path.glob("mp_rank_*/model_optim_rng.pt"), None):
        return "; these are Megatron's files: export the model to Hugging Face format with its own tools"
    return ""

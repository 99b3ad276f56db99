"""Which format of checkpoint a folder holds, and where in it: verl and accelerate keep theirs some folders down."""

from dataclasses import dataclass
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.trajectory.sources.formats import FORMATS, HF, ZERO, CheckpointFormat
from rlstride.trajectory.sources.source import ModelSource, StoredSource

# In this order: the adapter rather than the shards that hold it and its base; shards rather than a copy that was cast.
# DeepSpeed's files may be in a folder of any name, below the copy: see _zero_folder.
_INSIDE = (
    "actor/lora_adapter",
    "lora_adapter",
    "",
    "actor",
    "pytorch_model_fsdp_0",
    "actor/huggingface",
    "huggingface",
)
_ZERO_MASTERS = ZERO.marks[-1]
_LATEST = "latest"  # DeepSpeed's note of the folder that it wrote last
_UNREADABLE = {
    "*.distcp": "pieces of torch.distributed.checkpoint without .metadata, which is written last: half-written",
    "pytorch_model*.bin": "pickled weights are not read; save the model again with safetensors",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose tensors can be read."""

    format: CheckpointFormat
    path: Path

    def files(self) -> list[str]:
        """The names of the files that decide its weights, without its base where it is an adapter."""
        return list(self.format.weights) or self.open(None).files()

    def open(self, base: ModelSource | None) -> StoredSource:
        """The checkpoint's tensors. Errors are those of its format.

        Args:
            base: what an adapter lies over; no other format needs it.
        """
        if self.format.over_a_base and base is None:
            raise RequestError(f"{self.path}: an adapter is read over its base; name it with --base")
        return self.format.source(self.path, base)


def find_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or in one of the places below it where trainers put theirs; None where there is none.

    Raises:
        RequestError: there is one that cannot be read.
    """
    unreadable = None
    zero = _zero_folder(path)
    for inside in _INSIDE:
        folder = path / inside if inside else path
        if not folder.is_dir():
            continue
        for format in FORMATS.values():
            if format is not ZERO and _bears(folder, format):
                finer = zero if format is HF and zero and next(zero.glob(_ZERO_MASTERS), None) else None
                return Checkpoint(ZERO, finer) if finer else Checkpoint(format, folder)
        unreadable = unreadable or _why_not(folder)
    if zero:
        return Checkpoint(ZERO, zero)
    unreadable = unreadable or _which_zero(path)
    if unreadable:
        raise RequestError(unreadable)
    return None


def _why_not(folder: Path) -> str | None:
    return next((f"{folder}: {why}" for mark, why in _UNREADABLE.items() if next(folder.glob(mark), None)), None)


def _zero_folder(path: Path) -> Path | None:
    """DeepSpeed's files: here, or in the folder below that ``latest`` names, or the only one of a step's name."""
    if holds_zero(path):
        return path
    latest = path / _LATEST
    below = [path / latest.read_text(errors="replace").strip()] if latest.is_file() else _zero_folders(path)
    return below[0] if len(below) == 1 and below[0].parent == path and holds_zero(below[0]) else None


def _which_zero(path: Path) -> str | None:
    below = _zero_folders(path)
    if (path / _LATEST).is_file():
        return f"{path / _LATEST}: there are no files of DeepSpeed in the folder that it names"
    return f"{path}: {below[0].name} and {below[1].name} are both here; name one" if len(below) > 1 else None


def _zero_folders(path: Path) -> list[Path]:
    return sorted(below for below in path.glob("global_step*") if holds_zero(below))


def holds_zero(folder: Path) -> bool:
    """Whether a folder holds DeepSpeed's own files."""
    return _bears(folder, ZERO)


def _bears(folder: Path, format: CheckpointFormat) -> bool:
    return any(next(folder.glob(mark), None) for mark in format.marks)

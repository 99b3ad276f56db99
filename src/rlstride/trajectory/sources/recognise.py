"""Which kind of checkpoint a folder holds, and where in it: verl and accelerate keep theirs some folders down."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.trajectory.sources.hf import INDEX, SINGLE, HFFolder
from rlstride.trajectory.sources.lora import CONFIG, LoRAAdapter
from rlstride.trajectory.sources.source import StoredSource, TensorSource

# Sharded checkpoints are imported where they are met: torch.distributed takes longer than a small trajectory.


class Kind(StrEnum):
    """How a checkpoint is stored; the values stand in manifests."""

    HF = "hf"
    ADAPTER = "adapter"
    DCP = "dcp"
    FSDP = "fsdp"


# In this order: the adapter rather than the shards that hold it and its base; shards rather than a copy that was cast.
_INSIDE = (
    "actor/lora_adapter",
    "lora_adapter",
    "",
    "actor",
    "pytorch_model_fsdp_0",
    "actor/huggingface",
    "huggingface",
)
_MARKS = {
    Kind.HF: (SINGLE, INDEX),
    Kind.ADAPTER: (CONFIG,),
    Kind.DCP: (".metadata",),
    Kind.FSDP: ("model_world_size_*_rank_*.pt",),
}
_ZERO = (
    "DeepSpeed's shards are not read; run the zero_to_fp32.py that DeepSpeed left in the checkpoint "
    "(python zero_to_fp32.py . OUT --safe_serialization) and give OUT"
)
_UNREADABLE = {
    "*zero_pp_rank_*_states.pt": _ZERO,
    "mp_rank_*_model_states.pt": _ZERO,
    "*.distcp": "pieces of torch.distributed.checkpoint without .metadata, which is written last: half-written",
    "pytorch_model*.bin": "pickled weights are not read; save the model again with safetensors",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder that a :class:`TensorSource` can be opened over."""

    kind: Kind
    path: Path

    def open(self, base: TensorSource | None) -> StoredSource:
        """The checkpoint's tensors. Errors are those of its kind.

        Args:
            base: what an adapter lies over; no other kind needs it.
        """
        match self.kind:
            case Kind.HF:
                return HFFolder(self.path)
            case Kind.DCP:
                from rlstride.trajectory.sources.dcp import DCPFolder

                return DCPFolder(self.path)
            case Kind.FSDP:
                from rlstride.trajectory.sources.fsdp import FSDPShards

                return FSDPShards(self.path)
            case Kind.ADAPTER:
                if base is None:
                    raise RequestError(f"{self.path}: an adapter is read over its base; name it with --base")
                return LoRAAdapter(self.path, base)


def find_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or in one of the places below it where trainers put theirs; None where there is none.

    Raises:
        RequestError: there is one that cannot be read.
    """
    unreadable = None
    for inside in _INSIDE:
        folder = path / inside if inside else path
        if not folder.is_dir():
            continue
        for kind, marks in _MARKS.items():
            if any(next(folder.glob(mark), None) for mark in marks):
                return Checkpoint(kind, folder)
        unreadable = unreadable or _why_not(folder)
    # DeepSpeed puts its files into a folder of the step's name.
    unreadable = unreadable or next((why for below in _folders(path) if (why := _why_not(below))), None)
    if unreadable:
        raise RequestError(unreadable)
    return None


def _why_not(folder: Path) -> str | None:
    return next((f"{folder}: {why}" for mark, why in _UNREADABLE.items() if next(folder.glob(mark), None)), None)


def _folders(path: Path) -> list[Path]:
    return sorted(below for below in path.glob("global_step*") if below.is_dir()) if path.is_dir() else []

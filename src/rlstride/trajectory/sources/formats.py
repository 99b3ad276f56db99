"""Every checkpoint format that is read: the one list.

Nothing slow is imported: torch.distributed takes longer than a small trajectory. A new format is an entry here and the
class that it names; another package adds one by an entry point of the group ``rlstride.formats``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from rlstride.config.plugins import with_plugins
from rlstride.trajectory.sources.source import ModelSource, StoredSource

_SOURCES = "rlstride.trajectory.sources."


@dataclass(frozen=True)
class CheckpointFormat:
    """How a checkpoint is stored.

    Attributes:
        name: as manifests have it.
        about: what it is, and who writes it.
        marks: patterns of files, one of which a folder of this format holds.
        open: MODULE:OBJECT that makes the tensors' source of a folder (of an adapter: of a folder and its base).
        weights: the names of the files that decide its weights, where they are fixed; else the source says.
        over_a_base: whether it is read over its base.
    """

    name: str
    about: str
    marks: tuple[str, ...]
    open: str
    weights: tuple[str, ...] = ()
    over_a_base: bool = False

    def source(self, folder: Path, base: ModelSource | None = None) -> StoredSource:
        """A folder's tensors. Errors are those of the format."""
        make = resolve_name(self.open)
        source: StoredSource = make(folder, base) if self.over_a_base else make(folder)
        return source


HF = CheckpointFormat(
    "hf",
    "Hugging Face folder (safetensors)",
    ("model.safetensors", "model.safetensors.index.json"),
    _SOURCES + "hf:HFFolder",
)
ADAPTER = CheckpointFormat(
    "adapter",
    "PEFT LoRA adapter",
    ("adapter_config.json",),
    _SOURCES + "c3a:open_adapter",
    weights=("adapter_config.json", "adapter_model.safetensors"),
    over_a_base=True,
)
DCP = CheckpointFormat("dcp", "torch.distributed.checkpoint folder", (".metadata",), _SOURCES + "dcp:DCPFolder")
FSDP = CheckpointFormat(
    "fsdp",
    "FSDP shards, one file for each rank, as verl writes them",
    ("model_world_size_*_rank_*.pt",),
    _SOURCES + "fsdp:FSDPShards",
)
# DeepSpeed's files may lie in a folder of any name, below a copy in another format: recognise.py looks for them first.
ZERO = CheckpointFormat(
    "zero",
    "DeepSpeed ZeRO shards, one file for each rank",
    ("mp_rank_*_model_states.pt", "zero_pp_rank_*_model_states.pt", "*zero_pp_rank_*_optim_states.pt"),
    _SOURCES + "zero:ZeROShards",
)
# In this order a folder that bears several marks is taken for one of them.
_ALL = (
    HF,
    ADAPTER,
    DCP,
    FSDP,
    ZERO,
)
FORMATS: Mapping[str, CheckpointFormat] = with_plugins("rlstride.formats", CheckpointFormat, _ALL)

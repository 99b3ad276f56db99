"""Reading torch's pickled formats without running what is in them: every class they may name is listed here."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed import _mesh_layout
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from rlstride.errors import RequestError, first_line
from rlstride.progress import quiet

_Known = Callable[..., Any] | tuple[Callable[..., Any], str]

# It warns of a mesh whose process groups are not there: none is needed to read its tensors.
_MESH_LOGGER = "torch.distributed.device_mesh"
# What a rank's file holds beside tensors: which mesh a DTensor is spread over. Tensors and plain containers are torch's
# own list; DTensor, DeviceMesh and the placements were added to it by torch.distributed.tensor, under the names that
# they have had since torch 2.5. The earlier names stand here.
_OLDER = "torch.distributed._tensor"
# How a mesh is laid out. torch 2.10 has the second class alone; what it does not have, it cannot read either.
_LAYOUTS = [getattr(_mesh_layout, name) for name in ("_FlatLayout", "_MeshLayout") if hasattr(_mesh_layout, name)]
_MESH_CLASSES: list[_Known] = [
    *_LAYOUTS,
    (DTensor, f"{_OLDER}.api.DTensor"),
    (DTensorSpec, f"{_OLDER}.placement_types.DTensorSpec"),
    (TensorMeta, f"{_OLDER}.placement_types.TensorMeta"),
    (Shard, f"{_OLDER}.placement_types.Shard"),
    (Replicate, f"{_OLDER}.placement_types.Replicate"),
]

_METADATA_CLASSES = {
    (found.__module__, found.__qualname__): found
    for found in (
        metadata.Metadata,
        metadata.TensorStorageMetadata,
        metadata.TensorProperties,
        metadata._MEM_FORMAT_ENCODING,
        metadata.ChunkStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        filesystem._StorageInfo,
        filesystem._StoragePrefix,
        OrderedDict,
        torch.Size,
        torch.serialization._get_layout,
    )
}
# The writer's own path, kept as text would be: another system's kind of path must not matter.
_PATHS = {(module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")}


class _Inert:
    """Stands for an object that no tensor depends on: it takes whatever the pickle gives it, and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


# What DeepSpeed's optimisers put beside their tensors. DeepSpeed itself is never imported.
_DEEPSPEED_CLASSES: list[_Known] = [
    (_Inert, f"deepspeed.{name}")
    for name in (
        "runtime.fp16.loss_scaler.LossScaler",
        "runtime.fp16.loss_scaler.DynamicLossScaler",
        "runtime.zero.config.ZeroStageEnum",
        "utils.tensor_fragment.fragment_address",
        "checkpoint.universal_checkpoint.SubparamShape",
    )
]


def load_deepspeed(path: Path, way_out: str) -> Any:
    """What DeepSpeed saved, its tensors mapped rather than read; its own objects are left out.

    Args:
        path: the file.
        way_out: said where it is refused.

    Raises:
        RequestError: the file is missing, not whole, or asks for anything else to be called.
    """
    return _load(path, path, _DEEPSPEED_CLASSES, "tensors and DeepSpeed's own records", f"; {way_out}")


def load_tensors(file: Path | IO[bytes], place: Path) -> Any:
    """What torch.save wrote, by ``torch.load(weights_only=True)``: tensors, containers and sharding descriptions.

    Args:
        file: a path, whose tensors are then mapped rather than read, or a stream.
        place: named in errors.

    Raises:
        RequestError: the file is not whole, or asks for anything else to be called.
    """
    return _load(file, place, _MESH_CLASSES, "tensors and DTensors")


def _load(file: Path | IO[bytes], place: Path, classes: list[_Known], let_in: str, way_out: str = "") -> Any:
    try:
        with torch.serialization.safe_globals(classes), quiet(_MESH_LOGGER):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {found[1]}, but only {let_in} are let in" if found else first_line(error)
        raise RequestError(f"{place}: refused, and nothing in it was run: {what}{way_out}") from error
    except FileNotFoundError as error:
        raise RequestError(f"{place}: there is no such file") from error
    except Exception as error:  # what a damaged file makes torch raise is of many kinds
        raise RequestError(f"{place}: not a whole file of torch.save ({first_line(error)})") from error


class MetadataUnpickler(pickle.Unpickler):
    """Reads the ``.metadata`` of torch.distributed.checkpoint; any class that is not one of its own is refused."""

    def __init__(self, stream: IO[bytes], place: Path) -> None:
        super().__init__(stream)
        self._place = place

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return _METADATA_CLASSES[module, name]
        if (module, name) in _PATHS:
            return PurePosixPath
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise RequestError(
            f"{self._place}: refused, and nothing in it was run: it asks for {module}.{name}, "
            "which the metadata of torch.distributed.checkpoint does not need"
        )


def load_metadata(path: Path) -> metadata.Metadata:
    """The description of a torch.distributed.checkpoint folder.

    Raises:
        RequestError: the file is not whole, or holds anything else.
    """
    try:
        with path.open("rb") as stream:
            found = MetadataUnpickler(stream, path).load()
    except RequestError:
        raise
    except Exception as error:  # what a damaged pickle makes of itself is of many kinds
        raise RequestError(f"{path}: not whole metadata of torch.distributed.checkpoint ({error})") from error
    if not isinstance(found, metadata.Metadata) or not isinstance(found.storage_data, dict):
        raise RequestError(f"{path}: this is not the metadata of a torch.distributed.checkpoint folder")
    return found

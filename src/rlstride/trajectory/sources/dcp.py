"""Folders that torch.distributed.checkpoint writes: .metadata, and *.distcp files with pieces of every tensor."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from rlstride.errors import RequestError
from rlstride.trajectory.sources.safe_load import load_metadata
from rlstride.trajectory.sources.saved_tensor import SavedTensor
from rlstride.trajectory.sources.source import of_models

METADATA = ".metadata"


class DCPFolder:
    """Reads single tensors of a sharded checkpoint in their own dtype. Needs no process group.

    Raises:
        RequestError: the metadata is damaged, names what it does not need, or holds no tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        found = load_metadata(self.path / METADATA)
        self._storage: dict[MetadataIndex, _StorageInfo] = found.storage_data
        tensors = {
            key: entry for key, entry in found.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }
        self._entries = {key: tensors[key] for key in of_models(tensors)}
        if not self._entries:
            raise RequestError(f"{self.path / METADATA}: it lists no tensor of a model")

    def names(self) -> list[str]:
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name).size)

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).properties.dtype

    def tensor(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self._read(name, 0, shape[0]) if shape else self._piece(name, self._entry(name).chunks[0]).whole()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        start, stop, _ = slice(start, stop).indices(self.shape(name)[0])
        return self._read(name, start, max(start, stop))

    def files(self) -> list[str]:
        return [METADATA, *sorted(self._ends())]

    def problems(self) -> list[str]:
        found = []
        for file, end in sorted(self._ends().items()):
            path = self.path / file
            if not path.is_file():
                found.append(f"{path}: the metadata names this file, but it is missing")
            elif path.stat().st_size < end:
                found.append(f"{path}: half-written: {path.stat().st_size} of at least {end} bytes are there")
        return found

    def _ends(self) -> dict[str, int]:
        """For each file with a piece of the model the byte after its last piece."""
        ends = dict[str, int]()
        for index, info in self._storage.items():
            if index.fqn in self._entries:
                ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        return ends

    def _entry(self, name: str) -> TensorStorageMetadata:
        if name not in self._entries:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return self._entries[name]

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        """The pieces of a tensor that hold its rows ``start`` to ``stop``, put together."""
        entry, shape = self._entry(name), self.shape(name)
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(shape):
            raise RequestError(f"{self.path}: {name}: its pieces do not make up its shape {shape}")
        whole = torch.empty((stop - start, *shape[1:]), dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            first, last = max(start, chunk.offsets[0]), min(stop, chunk.offsets[0] + chunk.sizes[0])
            if first >= last:
                continue
            inside = tuple(slice(o, o + size) for o, size in zip(chunk.offsets[1:], chunk.sizes[1:], strict=True))
            piece = self._piece(name, chunk).rows(first - chunk.offsets[0], last - chunk.offsets[0])
            whole[(slice(first - start, last - start), *inside)] = piece
        return whole

    def _piece(self, name: str, chunk: ChunkStorageMetadata) -> SavedTensor:
        info = self._storage.get(MetadataIndex(name, chunk.offsets))
        if info is None or Path(info.relative_path).name != info.relative_path:
            raise RequestError(f"{self.path}: {name}: the metadata names no file of this folder for one of its pieces")
        path = self.path / info.relative_path
        if info.transform_descriptors:
            how = ", ".join(info.transform_descriptors)
            raise RequestError(f"{path}: {name}: it is stored through {how}; only plain pieces can be read")
        piece = SavedTensor(path, info.offset, info.length)
        if piece.shape != tuple(chunk.sizes) or piece.dtype != self.dtype(name):
            raise RequestError(f"{path}: {name}: one of its pieces is not of the shape and dtype that .metadata says")
        return piece

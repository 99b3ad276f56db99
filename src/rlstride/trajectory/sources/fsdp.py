"""The sharded state dicts of verl's FSDP checkpoints: model_world_size_N_rank_R.pt, one file for each rank."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from rlstride.errors import RequestError
from rlstride.trajectory.sources.safe_load import load_tensors
from rlstride.trajectory.sources.source import of_models

_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


class FSDPShards:
    """Puts each tensor together from the ranks' files, which are mapped and not read until then.

    The pieces keep their own dtype. Needs no process group.

    Raises:
        RequestError: a rank's file is missing, damaged, or holds something other than tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = rank_files(self.path)
        ranks = [self._load(file) for file in self._files]
        self._names = of_models(ranks[0])
        if not self._names:
            raise RequestError(f"{self.path / self._files[0]}: no tensor of a model is in it")
        for file, rank in zip(self._files, ranks, strict=True):
            absent = next((name for name in self._names if name not in rank), None)
            if absent:
                raise RequestError(f"{self.path / file}: there is no tensor {absent!r}, which the first rank has")
        self._ranks = ranks

    def names(self) -> list[str]:
        return sorted(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._first(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._first(name).dtype

    def tensor(self, name: str) -> Tensor:
        pieces, dim = self._pieces(name)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        pieces, dim = self._pieces(name)
        start, stop, _ = slice(start, stop).indices(self.shape(name)[0])
        if dim != 0:
            return torch.cat([piece[start:stop] for piece in pieces], dim)
        found, offset = [], 0
        for piece in pieces:
            found.append(piece[max(start - offset, 0) : max(stop - offset, 0)])
            offset += len(piece)
        return torch.cat(found)

    def files(self) -> list[str]:
        return self._files

    def problems(self) -> list[str]:
        found = []
        for name in self.names():
            try:
                self._pieces(name)
            except RequestError as error:
                found.append(str(error))
        return found

    def _load(self, file: str) -> dict[str, Tensor]:
        found = load_tensors(self.path / file, self.path / file)
        if not isinstance(found, Mapping):
            raise RequestError(f"{self.path / file}: expected a state dict, found a {type(found).__name__}")
        return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}

    def _first(self, name: str) -> Tensor:
        if name not in self._ranks[0]:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return self._ranks[0][name]

    def _pieces(self, name: str) -> tuple[list[Tensor], int]:
        """The pieces of a tensor in order, and the dimension along which they are joined."""
        first = self._first(name)
        if not isinstance(first, DTensor):
            return [first.detach()], 0
        placements = first._spec.placements
        sharded = [axis for axis, placement in enumerate(placements) if type(placement) is Shard]
        replicated = [axis for axis, placement in enumerate(placements) if type(placement) is Replicate]
        if len(sharded) > 1 or len(sharded) + len(replicated) < len(placements):
            raise RequestError(
                f"{self.path}: {name}: it is spread as {', '.join(map(str, placements))}; only tensors that are split "
                "along one axis of the mesh, or copied, can be put together"
            )
        ranks = _ranks_of(first._spec.mesh)
        for axis in reversed(replicated):
            ranks = ranks.select(axis, 0)
        pieces = [self._local(rank, name) for rank in ranks.reshape(-1).tolist()]
        placement = placements[sharded[0]] if sharded else None
        dim = placement.dim if isinstance(placement, Shard) else 0
        self._check(name, pieces, dim)
        return pieces, dim

    def _local(self, rank: int, name: str) -> Tensor:
        found = self._ranks[rank][name] if rank < len(self._ranks) else None
        if not isinstance(found, DTensor):
            raise RequestError(f"{self.path}: {name}: rank {rank} has no piece of it, although others have")
        return found._local_tensor.detach()

    def _check(self, name: str, pieces: list[Tensor], dim: int) -> None:
        shape = list(self.shape(name))
        together = list(pieces[0].shape)
        together[dim] = sum(piece.shape[dim] for piece in pieces)
        if together != shape:
            raise RequestError(f"{self.path}: {name}: its pieces make up {together}, but its shape is {shape}")


def rank_files(path: Path) -> list[str]:
    """The files of ranks 0 .. N-1.

    Raises:
        RequestError: there is none, one is missing, or two runs' files lie side by side.
    """
    found = {(int(match[1]), int(match[2])) for file in path.iterdir() if (match := _FILE.fullmatch(file.name))}
    sizes = sorted({size for size, _ in found})
    if len(sizes) != 1:
        what = f"files of {' and of '.join(map(str, sizes))} ranks side by side" if sizes else "no file of a rank"
        raise RequestError(f"{path}: {what}; expected model_world_size_N_rank_R.pt of one N")
    names = [f"model_world_size_{sizes[0]}_rank_{rank}.pt" for rank in range(sizes[0])]
    absent = [name for rank, name in enumerate(names) if (sizes[0], rank) not in found]
    if absent:
        raise RequestError(f"{path / absent[0]}: missing; {len(found)} of {sizes[0]} ranks' files are here")
    return names


def _ranks_of(mesh: DeviceMesh) -> Tensor:
    """The ranks of a mesh by position. torch before 2.9 kept them as an attribute, which is now computed."""
    kept = vars(mesh).get("mesh")
    return kept if isinstance(kept, Tensor) else mesh.mesh

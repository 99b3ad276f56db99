"""DeepSpeed's ZeRO checkpoints: the model's file, and the fp32 master weights, of which each rank holds a part.

A folder such as global_step100 holds, of ranks r = 0 .. R-1:

    mp_rank_00_model_states.pt                          ZeRO 1 and 2: the weights in the dtype of training, whole
    zero_pp_rank_{r}_mp_rank_00_model_states.pt         ZeRO 3: shapes, buffers, and shares of frozen weights
    [bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt  the masters of the trained weights, in flat vectors
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.flat import FlatTensor, FlatVector
from rlstride.trajectory.sources.zero_files import WAY_OUT, ZeROFiles, naming_the_copy
from rlstride.trajectory.sources.zero_masters import Shapes, find_masters


class ZeROShards:
    """Reads the fp32 masters; files are mapped, and read only where a tensor is asked for. Needs no DeepSpeed.

    Frozen weights and buffers have no masters: they are read in the dtype that they have in training. So are all
    weights of ZeRO 1 and 2 where the optimiser's files are not there, and then ``remark`` says so.

    Attributes:
        path: the folder that it is read from.
        remark: what to know of how the weights are read; None where there is nothing.

    Raises:
        RequestError: a file is missing, damaged, of another run or layout, or asks for code to be run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with naming_the_copy(self.path):
            self._files = ZeROFiles(self.path)
            if self._files.split and not self._files.masters:
                name = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
                raise self._files.error(name, "missing; ZeRO 3 keeps the weights in its optimiser's files alone")
            state = self._files.load(self._files.model[0])
            masters = find_masters(self._files, self._shapes(state))
            found: dict[str, Tensor | FlatTensor] = {**self._unmastered(state), **masters}
            for name, owner in self._mapping(state, "shared_params").items():
                if isinstance(owner, str) and owner in found and name not in masters:
                    found[name] = found[owner]
            if not found:
                raise self._files.error(self._files.model[0], "no tensor of a model is in it")
            self._found = found
        self.remark = None if masters else self._remark()

    def names(self) -> list[str]:
        return sorted(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        found = self._entry(name)
        return found.whole() if isinstance(found, FlatTensor) else found

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        found = self._entry(name)
        start, stop, _ = slice(start, stop).indices(found.shape[0])
        stop = max(start, stop)
        return found.rows(start, stop) if isinstance(found, FlatTensor) else found[start:stop]

    def files(self) -> list[str]:
        return sorted([*self._files.model.values(), *self._files.masters.values()])

    def problems(self) -> list[str]:
        return []  # what can be wrong with these files keeps them from being opened

    def _entry(self, name: str) -> Tensor | FlatTensor:
        if name not in self._found:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return self._found[name]

    def _shapes(self, state: Mapping[str, Any]) -> list[Shapes]:
        """The shapes of the trained weights, for each parameter group."""
        groups = state.get("param_shapes")
        name = self._files.model[0]
        if groups is None and not self._files.masters:
            return []  # trained without ZeRO
        if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
            raise self._files.error(name, f"param_shapes does not list the weights of each parameter group; {WAY_OUT}")
        return [self._sizes(group) for group in groups]

    def _sizes(self, shapes: Mapping[str, Any]) -> Shapes:
        found = {
            name: tuple(shape)
            for name, shape in shapes.items()
            if isinstance(shape, Iterable) and isinstance(name, str)
        }
        if len(found) < len(shapes) or any(type(n) is not int or n < 0 for shape in found.values() for n in shape):
            raise self._files.error(
                self._files.model[0], f"something other than a shape is among its shapes; {WAY_OUT}"
            )
        return found

    def _mapping(self, state: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """An entry of a model's file that may be left out."""
        found = state.get(key) or {}
        if not isinstance(found, Mapping):
            raise self._files.error(self._files.model[0], f"{key} is no mapping from names; {WAY_OUT}")
        return found

    def _unmastered(self, state: Mapping[str, Any]) -> Mapping[str, Tensor | FlatTensor]:
        """What is stored beside the masters: buffers and frozen weights, and of ZeRO 1 and 2 every weight."""
        module = state.get("module")
        if not isinstance(module, Mapping):
            raise self._files.error(self._files.model[0], f"there are no weights by name in it; {WAY_OUT}")
        named = {name: value for name, value in module.items() if isinstance(name, str)}
        tensors = {name: value.detach() for name, value in named.items() if isinstance(value, Tensor)}
        if not self._files.split:
            return tensors
        # Every other tensor is an empty one that stands for a weight that was taken apart.
        buffers = state.get("buffer_names")
        if not isinstance(buffers, list):
            raise self._files.error(self._files.model[0], f"buffer_names is no list; {WAY_OUT}")
        return {name: value for name, value in tensors.items() if name in buffers} | self._frozen(state)

    def _frozen(self, state: Mapping[str, Any]) -> dict[str, FlatTensor]:
        """Frozen weights of ZeRO 3: equal shares on each rank, the last one padded."""
        shapes = self._sizes(self._mapping(state, "frozen_param_shapes"))
        if not shapes:
            return {}
        files = self._files
        ranks = [self._mapping(files.load(name), "frozen_param_fragments") for name in files.model.values()]
        found = {}
        for name, shape in shapes.items():
            share = math.ceil(math.prod(shape) / len(ranks))
            for rank, own in enumerate(ranks):
                if not isinstance(own.get(name), Tensor) or own[name].shape != (share,):
                    raise files.error(
                        files.model[rank], f"{name}: there is no share of {share} numbers, but it is frozen"
                    )
            found[name] = FlatTensor(shape, [FlatVector([own[name]]) for own in ranks], 0, share)
        return found

    def _remark(self) -> str | None:
        dtypes = {found.dtype for found in self._found.values() if found.dtype.is_floating_point}
        narrow = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.itemsize < 4))
        return (
            f"without its ZeRO optimiser's files, so the weights are {narrow}, not the fp32 masters" if narrow else None
        )

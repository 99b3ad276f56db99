"""DeepSpeed's ZeRO checkpoints: the model's file, and the fp32 master weights, of which each rank holds a part.

A folder such as global_step100 holds, of ranks r = 0 .. R-1:

    mp_rank_00_model_states.pt                          ZeRO 1 and 2: the weights in the dtype of training, whole
    zero_pp_rank_{r}_mp_rank_00_model_states.pt         ZeRO 3: shapes, buffers, and shares of frozen weights
    [bf16_]zero_pp_rank_{r}_mp_rank_00_optim_states.pt  the masters of the trained weights, in flat vectors

ZeRO 1 and 2 lay the weights of a parameter group end to end, perhaps with gaps that align them, and cut that vector
over the ranks: a weight may begin on one rank and end on the next. ZeRO 3 cuts each weight into equal shares, the last
of which is padded; each rank lays its own shares end to end, one parameter group after the other.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.flat import FlatTensor, FlatVector
from rlstride.trajectory.sources.hf import INDEX, SINGLE
from rlstride.trajectory.sources.safe_load import load_deepspeed

# The script unpickles without restriction.
WAY_OUT = (
    "if you trust who made it, run the zero_to_fp32.py that DeepSpeed left above this folder "
    "(python zero_to_fp32.py . OUT --safe_serialization) and give OUT"
)
_WHOLE = "mp_rank_00_model_states.pt"
_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_model_states\.pt")
_MASTERS = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")
_TENSOR_PARALLEL = re.compile(r".*mp_rank_(?!00_)\d+_(?:model|optim)_states\.pt")
# Stages of a pipeline, and experts that have ranks of their own.
_OTHER_PIECES = re.compile(r"layer_.*_states\.pt|expp_rank_.*_states\.pt")


@contextmanager
def naming_the_copy(path: Path) -> Iterator[None]:
    """Adds to an error that the trainer left the whole model beside this folder, where it did."""
    try:
        yield
    except RequestError as error:
        whole = next((name for name in (SINGLE, INDEX) if (path.parent / name).is_file()), None)
        if whole is None:
            raise
        way = f"move {path.name} away, and {whole} beside it is read, in the dtype of training"
        raise RequestError(f"{error} ({way})") from error


class ZeROFiles:
    """The files of a checkpoint, by name.

    Attributes:
        path: their folder.
        split: whether the weights themselves are spread over the ranks, as by ZeRO 3.
        model: the model's file, or each rank's by rank where they are split.
        masters: the optimiser's file of each rank; none where they are not there.

    Raises:
        RequestError: the model is split in another way too, its file is missing, or two runs lie side by side.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = sorted(file.name for file in path.iterdir())
        for name in names:
            if _TENSOR_PARALLEL.fullmatch(name):
                raise self.error(name, "tensor-parallel: each matrix is cut into mp_ranks; only one mp_rank is read")
            if _OTHER_PIECES.fullmatch(name):
                raise self.error(name, "a piece of a pipeline- or expert-parallel model, which is not read")
        split = self._by_rank(names, _MODEL)
        if split and _WHOLE in names:
            raise self.error(_WHOLE, "it lies beside ZeRO 3's files, which need none: two runs side by side?")
        self.split = bool(split)
        self.model = split or ({0: _WHOLE} if _WHOLE in names else {})
        self.masters = self._by_rank(names, _MASTERS)
        if 0 not in self.model:
            name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if split else _WHOLE
            raise self.error(name, "missing; it names the weights")

    def load(self, name: str) -> Mapping[str, Any]:
        """What a file holds, its tensors mapped.

        Raises:
            RequestError: the file is damaged, or holds something else than DeepSpeed puts there.
        """
        found = load_deepspeed(self.path / name, WAY_OUT)
        if not isinstance(found, Mapping):
            raise self.error(name, f"expected what DeepSpeed saves, found a {type(found).__name__}")
        return found

    def check_ranks(self, ranks: int) -> None:
        """Whether there are the files of so many ranks, no fewer and no more.

        Raises:
            RequestError: there are not.
        """
        for found in [self.masters, *([self.model] if self.split else [])]:
            absent = next((rank for rank in range(ranks) if rank not in found), None)
            if absent is not None:
                name = re.sub(r"pp_rank_\d+", f"pp_rank_{absent}", next(iter(found.values())))
                raise self.error(name, f"missing; {len(found)} of {ranks} ranks' files are here")
            if len(found) > ranks:
                name = found[max(found)]
                raise self.error(name, f"a file of {len(found)} ranks, but the first one says that they were {ranks}")

    def error(self, name: str, what: str) -> RequestError:
        """What is wrong with a file, as a sentence."""
        return RequestError(f"{self.path / name}: {what}")

    def _by_rank(self, names: list[str], pattern: re.Pattern[str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for name in names:
            if match := pattern.fullmatch(name):
                if int(match[1]) in found:
                    raise self.error(name, f"beside {found[int(match[1])]}: two runs side by side")
                found[int(match[1])] = name
        return dict(sorted(found.items()))


Shapes = Mapping[str, tuple[int, ...]]
_CUTS = "single_partition_of_fp32_groups"  # ZeRO 1 and 2
_SHARES = "fp32_flat_groups"  # ZeRO 3
_GAPS = "param_alignment_paddings"
_OTHER = f"the files are not of one run, or of a layout that is not read; {WAY_OUT}"


def find_masters(files: ZeROFiles, groups: Sequence[Shapes]) -> dict[str, FlatTensor]:
    """The masters by name; none where the optimiser's files are not there.

    Args:
        files: the checkpoint.
        groups: the shapes of the weights of each parameter group, in the order in which they were laid end to end.

    Raises:
        RequestError: a rank's file is missing or damaged, or does not hold what ``groups`` names.
    """
    if not files.masters:
        return {}
    states = {rank: _state(files, name) for rank, name in files.masters.items()}
    first = next(iter(states))
    files.check_ranks(_ranks(files, files.masters[first], states[first]))
    key = _SHARES if files.split else _CUTS
    ranks = [_vectors(files, files.masters[rank], state, key) for rank, state in states.items()]
    return _of_shares(files, groups, ranks) if files.split else _of_cuts(files, groups, ranks, states[0].get(_GAPS))


def _state(files: ZeROFiles, name: str) -> Mapping[str, Any]:
    found = files.load(name).get("optimizer_state_dict")
    if not isinstance(found, Mapping):
        raise files.error(name, f"there is no state of an optimiser in it; {WAY_OUT}")
    return found


def _ranks(files: ZeROFiles, name: str, state: Mapping[str, Any]) -> int:
    """The number of ranks that the weights are spread over, as a rank's file says it."""
    found = state.get("partition_count")
    counts = found if isinstance(found, list) else [found]
    if any(count != counts[0] for count in counts):
        raise files.error(name, "its parameter groups are spread over different numbers of ranks, which is not read")
    if not counts or not isinstance(counts[0], int) or counts[0] < 1:
        raise files.error(name, f"it does not say how many ranks it was spread over; {WAY_OUT}")
    return counts[0]


def _vectors(files: ZeROFiles, name: str, state: Mapping[str, Any], key: str) -> list[Tensor]:
    """A rank's flat vectors, one for each parameter group."""
    found = state.get(key)
    if not isinstance(found, list) or not all(isinstance(vector, Tensor) for vector in found):
        raise files.error(name, f"there is no {key} in it, where the fp32 masters should be; {WAY_OUT}")
    return found


def _of_cuts(
    files: ZeROFiles, groups: Sequence[Shapes], ranks: Sequence[list[Tensor]], gaps: Any
) -> dict[str, FlatTensor]:
    found: dict[str, FlatTensor] = {}
    for rank, vectors in enumerate(ranks):
        if len(vectors) != len(groups):
            what = f"it has {len(vectors)} parameter groups, but the model's file names {len(groups)}"
            raise files.error(files.masters[rank], what)
    for index, shapes in enumerate(groups):
        vector = _flat(files, files.masters[0], (vectors[index] for vectors in ranks))
        placed, end = _placed(shapes, [vector], _gaps(files, gaps, index, len(shapes)))
        # The vector is filled up to a multiple of twice the number of ranks; some optimisers save the filling too.
        unit = 2 * len(ranks)
        if not end <= len(vector) <= unit * math.ceil(end / unit):
            raise _misfit(files, files.masters[0], f"group {index}", len(vector), end)
        found |= placed
    return found


def _of_shares(files: ZeROFiles, groups: Sequence[Shapes], ranks: Sequence[list[Tensor]]) -> dict[str, FlatTensor]:
    names = files.masters
    vectors = [_flat(files, names[rank], own) for rank, own in enumerate(ranks)]
    shapes = dict(chain.from_iterable(group.items() for group in groups))
    found, end = _placed(shapes, vectors, repeat(0, len(shapes)))
    for rank, vector in enumerate(vectors):
        if len(vector) != end:
            raise _misfit(files, names[rank], f"rank {rank}", len(vector), end)
    return found


def _gaps(files: ZeROFiles, gaps: Any, index: int, count: int) -> Iterable[int]:
    """How far each weight of a group is from the next. Versions that left none recorded none."""
    if gaps is None:
        return repeat(0, count)
    found = gaps[index] if isinstance(gaps, list) and index < len(gaps) else None
    if not isinstance(found, list) or len(found) != count or not all(isinstance(gap, int) for gap in found):
        raise files.error(files.masters[0], f"{_GAPS} does not fit the {count} weights of group {index}: {_OTHER}")
    return found


def _flat(files: ZeROFiles, name: str, pieces: Iterable[Tensor]) -> FlatVector:
    try:
        return FlatVector(pieces)
    except ValueError as error:
        raise files.error(name, f"its fp32 masters are not as DeepSpeed lays them out ({error})") from error


def _placed(shapes: Shapes, vectors: Sequence[FlatVector], gaps: Iterable[int]) -> tuple[dict[str, FlatTensor], int]:
    """Each weight in its place, and where the last one ends; ``gaps`` follow the weights."""
    found, start = {}, 0
    for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
        share = math.ceil(math.prod(shape) / len(vectors))
        found[name] = FlatTensor(shape, vectors, start, share)
        start += share + gap
    return found, start


def _misfit(files: ZeROFiles, name: str, where: str, length: int, end: int) -> RequestError:
    what = f"{where} has {length} numbers, but the weights that {files.model[0]} names take {end}"
    return files.error(name, f"{what}: {_OTHER}")


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

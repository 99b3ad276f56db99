"""Where each weight's fp32 master lies in the flat vectors of a ZeRO checkpoint's optimiser files.

ZeRO 1 and 2 lay the weights of a parameter group end to end, perhaps with gaps that align them, and cut that vector
over the ranks: a weight may begin on one rank and end on the next. ZeRO 3 cuts each weight into equal shares, the last
of which is padded; each rank lays its own shares end to end, one parameter group after the other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.flat import FlatTensor, FlatVector
from rlstride.trajectory.sources.zero_files import WAY_OUT, ZeROFiles

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

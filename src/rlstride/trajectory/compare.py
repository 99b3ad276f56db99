"""Whether a checkpoint is one of the base's: the same tensors, of the same shapes."""

import math
from collections import Counter
from functools import reduce

import torch

from rlstride.trajectory.layout import InLayout
from rlstride.trajectory.sources.source import NamedTensors


def misfits(step: InLayout, base: InLayout, called: str = "the base") -> list[str]:
    """What keeps a checkpoint from being a step from this base, a sentence for each tensor.

    Args:
        step: the checkpoint.
        base: what it should have the tensors of.
        called: what to call that.
    """
    found = []
    for name in base.names():
        if not step.holds(name):
            found.append(f"{step.path}: there is no tensor {name!r}, which {called} has")
        elif step.shape(name) != base.shape(name):
            found.append(f"{step.path}: {name}: its shape is {step.shape(name)}, but {called}'s is {base.shape(name)}")
    return found


def wider(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """The narrowest floating dtype in which the values of both are exact."""
    if first.itemsize == second.itemsize and first != second:  # bfloat16 and float16: neither holds the other
        return torch.float32
    return max(first, second, key=lambda dtype: dtype.itemsize)


def dtype_of_edits(base: torch.dtype, step: torch.dtype) -> torch.dtype:
    """In which a matrix is written that lies on neither's grid: float32 at least, or rounding would take most of it."""
    return wider(wider(base, step), torch.float32)


def widest_dtype(source: NamedTensors) -> torch.dtype:
    """The floating dtype in which every parameter of a model is exact."""
    dtypes = {source.dtype(name) for name in source.names()}
    return reduce(wider, (dtype for dtype in dtypes if dtype.is_floating_point))


def parameters_by_dtype(source: InLayout) -> dict[str, int]:
    """How many parameters are stored in each dtype, most first."""
    counts: Counter[str] = Counter()
    for name in source.names():
        counts[str(source.dtype(name)).removeprefix("torch.")] += math.prod(source.shape(name))
    return dict(counts.most_common())

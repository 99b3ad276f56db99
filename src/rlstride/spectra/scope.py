"""Which tensors a rank-k edit may change: the 2-D weights inside the decoder layers."""

import re
from dataclasses import dataclass

from rlstride.trajectory.sources import TensorSource

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
OUTSIDE_LAYERS = -1


@dataclass(frozen=True)
class Weight:
    """One tensor of a model, and where it stands.

    Attributes:
        name: the tensor's name; fused matrices and experts have their own (:mod:`rlstride.trajectory.layout`).
        module: the name without ``.weight``, as it stands in tables.
        layer: index of the decoder layer; -1 outside of the layers.
        kind: last part of the module's name, such as ``q_proj``.
        shape: the tensor's shape.
        in_scope: whether it is a 2-D weight inside a decoder layer.
    """

    name: str
    module: str
    layer: int
    kind: str
    shape: tuple[int, ...]
    in_scope: bool


def describe_tensor(name: str, shape: tuple[int, ...]) -> Weight:
    """A tensor's place, read from its name and shape."""
    found = _LAYER.search(name)
    module = name.removesuffix(".weight")
    return Weight(
        name=name,
        module=module,
        layer=int(found[1]) if found else OUTSIDE_LAYERS,
        kind=".".join(module.split(".")[-2:]) if module.endswith(".bias") else module.rsplit(".", 1)[-1],
        shape=shape,
        in_scope=found is not None and len(shape) == 2 and name.endswith(".weight"),
    )


def weights_of(source: TensorSource) -> list[Weight]:
    """Every tensor of a checkpoint, in order of its name."""
    return [describe_tensor(name, source.shape(name)) for name in source.names()]

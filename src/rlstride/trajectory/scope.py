"""Which tensors a rank-k edit may change: the matrices inside the decoder layers, and how much of the model that is."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlstride.trajectory.layout import InLayout, Place


@dataclass(frozen=True)
class Weight:
    """One tensor of a model, and where it stands.

    Attributes:
        name: the tensor's name; fused matrices and experts have their own (:mod:`rlstride.trajectory.layout`).
        module: the name without ``.weight``, as it stands in tables.
        layer: index of the decoder layer; -1 outside of the layers.
        kind: last part of the module's name, such as ``q_proj``.
        shape: the tensor's shape.
        in_scope: whether it is a matrix inside a decoder layer.
        fused: whether it is several projections in one, which are not taken apart.
    """

    name: str
    module: str
    layer: int
    kind: str
    shape: tuple[int, ...]
    in_scope: bool
    fused: bool = False

    @property
    def size(self) -> int:
        """Its number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Scope:
    """How much of a model is in scope.

    Attributes:
        matrices: how many.
        share: of all parameters.
        fused: the kinds among them that are several projections in one.
    """

    matrices: int
    share: float
    fused: list[str]

    def __str__(self) -> str:
        fused = f"; not taken apart: {', '.join(self.fused)}" if self.fused else ""
        return f"{self.matrices} matrices, {100 * self.share:.1f} % of the parameters{fused}"


def describe_tensor(name: str, place: Place) -> Weight:
    """A tensor's place in a model, with the parts of its name."""
    module = name.removesuffix(".weight")
    return Weight(
        name=name,
        module=module,
        layer=place.layer,
        kind=".".join(module.split(".")[-2:]) if module.endswith(".bias") else module.rsplit(".", 1)[-1],
        shape=place.shape,
        in_scope=place.in_scope,
        fused=place.fused,
    )


def weights_of(source: InLayout) -> list[Weight]:
    """Every tensor of a checkpoint, in order of its name."""
    return [describe_tensor(name, source.place(name)) for name in source.names()]


def scope_of(weights: Sequence[Weight]) -> Scope:
    """How much of a model is in scope."""
    inside = [weight for weight in weights if weight.in_scope]
    total = sum(weight.size for weight in weights)
    fused = sorted({weight.kind for weight in inside if weight.fused})
    return Scope(len(inside), sum(weight.size for weight in inside) / max(total, 1), fused)


def listed(modules: Iterable[str], most: int = 4) -> str:
    """Names in a sentence: the first few, and how many there are."""
    names = list(modules)
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"

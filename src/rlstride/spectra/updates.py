"""The updates D(t) = Wt - W0 of a trajectory: one tensor at a time, checked, in float32."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlstride.errors import NotFiniteError, RequestError, WorkError
from rlstride.spectra.measures import frobenius
from rlstride.spectra.scope import Weight, weights_of
from rlstride.spectra.svd import truncated_svd
from rlstride.trajectory.sources import TensorSource
from rlstride.trajectory.store import Trajectory

_PIECE_ENTRIES = 1 << 24


class UpdateReader:
    """Reads a trajectory's tensors and updates. Through a window's trajectory it cannot read beyond the window.

    Attributes:
        trajectory: the trajectory, or a window of one.
        weights: every tensor of the base.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self._sources: dict[int, TensorSource] = {}
        self._recent: dict[bool, tuple[str, int, Tensor]] = {}  # the last tensor read of the base, and of a kept step
        self.weights: list[Weight] = weights_of(self._source(0))

    @property
    def in_scope(self) -> list[Weight]:
        """The 2-D weights inside the decoder layers.

        Raises:
            RequestError: the base has none.
        """
        found = [weight for weight in self.weights if weight.in_scope]
        if not found:
            raise RequestError(f"{self.trajectory.base_folder}: no 2-D weight inside a decoder layer was found")
        return found

    def stored(self, weight: Weight, step: int) -> Tensor:
        """A tensor as it is stored; step 0 is the base.

        Raises:
            RequestError: the step was not kept, lies beyond the window, or lacks the tensor.
            NotFiniteError: NaN or infinite entries.
            WorkError: a shape that is not the base's.
        """
        name, at, recent = self._recent.get(step == 0, ("", 0, torch.empty(0)))
        if (name, at) == (weight.name, step):
            return recent
        tensor = self._source(step).tensor(weight.name)
        self._check_shape(weight, step, tuple(tensor.shape))
        self._check_finite(weight, step, _not_finite(tensor))
        self._recent[step == 0] = (weight.name, step, tensor)
        return tensor

    def update(self, weight: Weight, step: int, device: str = "cpu") -> Tensor:
        """D(t) = Wt - W0, subtracted in float32; shape of the weight. Errors are those of :meth:`stored`."""
        return self.stored(weight, step).to(device, torch.float32) - self.stored(weight, 0).to(device, torch.float32)

    def pieces(self, weight: Weight, step: int, device: str = "cpu") -> Iterator[Tensor]:
        """D(t) in consecutive rows, of which no more than 64 MiB are in memory at a time.

        Errors are those of :meth:`stored`; that entries are not finite is told after the last piece.
        """
        if math.prod(weight.shape) <= _PIECE_ENTRIES:
            yield self.update(weight, step, device)
            return
        sources = {at: self._source(at) for at in (step, 0)}
        self._check_shape(weight, step, sources[step].shape(weight.name))
        bad = dict.fromkeys(sources, 0)
        rows = max(1, _PIECE_ENTRIES * weight.shape[0] // math.prod(weight.shape))
        for first in range(0, weight.shape[0], rows):
            read = {at: source.rows(weight.name, first, first + rows) for at, source in sources.items()}
            bad = {at: bad[at] + _not_finite(tensor) for at, tensor in read.items()}
            yield read[step].to(device, torch.float32) - read[0].to(device, torch.float32)
        for at, count in bad.items():
            self._check_finite(weight, at, count)

    def dtype(self, weight: Weight, step: int) -> torch.dtype:
        """In which a tensor is stored; step 0 is the base."""
        return self._source(step).dtype(weight.name)

    def _check_shape(self, weight: Weight, step: int, shape: tuple[int, ...]) -> None:
        if shape != weight.shape:
            place = f"{self.trajectory.model_folder(step)}: {weight.name}"
            raise WorkError(f"{place}: its shape is {shape}, but the base's is {weight.shape}")

    def _check_finite(self, weight: Weight, step: int, bad: int) -> None:
        if bad:
            place = f"{self.trajectory.model_folder(step)}: {weight.name}"
            raise NotFiniteError(f"{place}: {bad} of {math.prod(weight.shape)} entries are NaN or infinite")

    def _source(self, step: int) -> TensorSource:
        if step not in self._sources:
            self._sources[step] = self.trajectory.source(step)
        return self._sources[step]


def _not_finite(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.isfinite(tensor).sum())


@dataclass(frozen=True)
class Movement:
    """Singular triplets of one weight's update over T kept steps, their signs aligned to the last of them.

    Attributes:
        steps: the T steps, ascending.
        norms: |D(t)|F, float64 (T,).
        u: left singular vectors (T, m, k).
        s: singular values (T, k).
        v: right singular vectors (T, n, k).
    """

    steps: list[int]
    norms: Tensor
    u: Tensor
    s: Tensor
    v: Tensor

    def coordinates(self, rank: int = 1) -> Tensor:
        """x(t) = |D(t)|F u_rank(t), float64 (T, m)."""
        return self.norms[:, None] * self.u[:, :, rank - 1].double()


def movement(reader: UpdateReader, weight: Weight, k: int) -> Movement:
    """The k leading singular triplets of a weight's update at every kept step that the reader may read."""
    steps = reader.trajectory.steps
    updates = [reader.update(weight, step) for step in steps]
    norms = torch.tensor([frobenius(D) for D in updates], dtype=torch.float64)
    found = [truncated_svd(D, k) for D in updates]
    u, s, v = (torch.stack(parts) for parts in ([f.u for f in found], [f.s for f in found], [f.v for f in found]))
    signs = aligned_signs(u, s)  # (T, k)
    return Movement(steps, norms, u * signs[:, None, :], s, v * signs[:, None, :])


def aligned_signs(u: Tensor, s: Tensor) -> Tensor:
    """Signs (T, k) that turn each u_i(t) towards its successor, chained backwards from the last step.

    A vector of a zero singular value is arbitrary: it takes no part in the chain.

    Args:
        u: left singular vectors (T, m, k).
        s: singular values (T, k).
    """
    steps, _, ranks = u.shape
    signs = torch.ones(steps, ranks, dtype=u.dtype)
    for rank in range(ranks):
        reference = None
        for t in reversed(range(steps)):
            if s[t, rank] == 0:
                continue
            if reference is not None and float(u[t, :, rank] @ reference) < 0:
                signs[t, rank] = -1
            reference = u[t, :, rank] * signs[t, rank]
    return signs

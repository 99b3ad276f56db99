"""The updates D(t) = Wt - W0 of a trajectory: one tensor at a time, checked, in float32."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from rlstride.errors import NotFiniteError, RequestError, WorkError
from rlstride.spectra.measures import PANEL_ENTRIES, frobenius
from rlstride.spectra.svd import TruncatedSVD, truncated_svd
from rlstride.trajectory.layout import InLayout
from rlstride.trajectory.scope import Weight, weights_of
from rlstride.trajectory.store import Trajectory

_PIECE_ENTRIES = 1 << 24
_PROMOTED = (torch.float32, torch.bfloat16, torch.float16)  # what torch subtracts from float32 as it is


class UpdateReader:
    """Reads a trajectory's tensors and updates. Through a window's trajectory it cannot read beyond the window.

    Attributes:
        trajectory: the trajectory, or a window of one.
        weights: every tensor of the base.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self._sources: dict[int, InLayout] = {}
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
        tensor = self._read(weight, step)
        self._check_finite(weight, step, _not_finite(tensor))
        return tensor

    def update(self, weight: Weight, step: int) -> Tensor:
        """D(t) = Wt - W0, subtracted in float32; shape of the weight. Errors are those of :meth:`stored`."""
        D = torch.empty(weight.shape)
        if not all(_is_finite(panel) for panel in self.panels(weight, step, D)):
            self.raise_not_finite(weight, step)
        return D

    def panels(self, weight: Weight, step: int, into: Tensor | None = None, device: str = "cpu") -> Iterator[Tensor]:
        """D(t) = Wt - W0 in consecutive rows, subtracted in float32 and unchecked.

        Each is good until the next is asked for. On a CPU it fits into a core's own cache; of a large tensor no more
        than 64 MiB are in memory beside it. Errors are those of :meth:`stored`, but for entries that are not finite.

        Args:
            weight: the tensor.
            step: a kept step.
            into: takes the whole of D(t), shape of the weight, on any device.
            device: of the panels, where ``into`` is not given.
        """
        device = device if into is None else str(into.device)
        buffer = torch.empty(0, device=device) if into is None else into.view(-1)
        first, row = 0, max(1, math.prod(weight.shape[1:]))
        for length, write in self._differences(weight, step):
            rows = length if device != "cpu" else max(1, PANEL_ENTRIES // row)
            for start in range(0, length, rows):
                size = min(rows, length - start) * row
                if into is None and len(buffer) < size:
                    buffer = torch.empty(size, device=device)
                D = buffer[first : first + size].view(-1, row)
                write(D, start)
                yield D
                first += size if into is not None else 0

    def rows_of_all(self, weight: Weight) -> Iterator[Tensor]:
        """The updates of all kept steps side by side, a few rows at a time: float32 (T, rows, ...), 64 MiB in all.

        Errors are those of :meth:`stored`.
        """
        steps = self.trajectory.steps
        for step in steps:
            self._check_shape(weight, step, self._source(step).shape(weight.name))
        factors = [self.factors(weight, step) for step in steps]
        rows = max(1, _PIECE_ENTRIES * weight.shape[0] // (len(steps) * math.prod(weight.shape)))
        for first in range(0, weight.shape[0], rows):
            last = min(first + rows, weight.shape[0])
            before = self._source(0).rows(weight.name, first, last)
            D = torch.empty(len(steps), *before.shape)
            for t, (step, pair) in enumerate(zip(steps, factors, strict=True)):
                if pair is None:
                    _subtract(self._source(step).rows(weight.name, first, last), before, D[t], 0)
                else:
                    _multiply(*pair, D[t], first)
                if not _is_finite(D[t]):
                    self.raise_not_finite(weight, step)
            yield D

    def factors(self, weight: Weight, step: int) -> tuple[Tensor, Tensor] | None:
        """L (m, r) and R (r, n), float32, with D(t) = L R, where the step is an adapter over the base; else None."""
        found = self._source(step).factors(weight.name)
        return None if found is None else (found[0].float(), found[1].float())

    def moved(self, step: int, weights: Iterable[Weight]) -> set[str]:
        """The names of those tensors that differ from the base's at a step; errors are those of :meth:`panels`."""
        return {weight.name for weight in weights if any(bool(D.any()) for D in self.panels(weight, step))}

    def raise_not_finite(self, weight: Weight, step: int) -> NoReturn:
        """Says which entries of a tensor, or of the base's, are NaN or infinite.

        Raises:
            NotFiniteError: always.
        """
        bad = [0, 0]
        for pair in self._pieces(weight, step):
            bad = [count + _not_finite(tensor) for count, tensor in zip(bad, pair, strict=True)]
        self._check_finite(weight, step, bad[0])
        self._check_finite(weight, 0, bad[1])
        place = f"{self.trajectory.model_folder(step)}: {weight.name}"
        raise NotFiniteError(f"{place}: its update from the base is beyond the range of float32")

    def dtype(self, weight: Weight, step: int) -> torch.dtype:
        """In which a tensor is stored; step 0 is the base."""
        return self._source(step).dtype(weight.name)

    def stored_bytes(self, weight: Weight) -> int:
        """What a tensor takes in all files that the reader may read, the base's included."""
        dtypes = [self.dtype(weight, step) for step in (0, *self.trajectory.steps)]
        return math.prod(weight.shape) * sum(dtype.itemsize for dtype in dtypes)

    def _differences(self, weight: Weight, step: int) -> Iterator[tuple[int, Callable[[Tensor, int], object]]]:
        """Consecutive pieces of D(t): how many rows, and what writes those from a given one on into a panel."""
        factors = self.factors(weight, step)
        if factors is None:
            for after, before in self._pieces(weight, step):
                yield len(after), partial(_subtract, after, before)
        else:
            yield weight.shape[0], partial(_multiply, *factors)

    def _pieces(self, weight: Weight, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Consecutive rows of the step's tensor and of the base's, as stored: all of them, or 64 MiB at a time."""
        if math.prod(weight.shape) <= _PIECE_ENTRIES or weight.in_scope:
            after, before = self._read(weight, step), self._read(weight, 0)
            yield (after, before) if weight.shape else (after[None], before[None])
            return
        sources = [self._source(at) for at in (step, 0)]
        self._check_shape(weight, step, sources[0].shape(weight.name))
        rows = max(1, _PIECE_ENTRIES * weight.shape[0] // math.prod(weight.shape))
        for first in range(0, weight.shape[0], rows):
            after, before = (source.rows(weight.name, first, first + rows) for source in sources)
            yield after, before

    def _read(self, weight: Weight, step: int) -> Tensor:
        name, at, recent = self._recent.get(step == 0, ("", 0, torch.empty(0)))
        if (name, at) == (weight.name, step):
            return recent
        tensor = self._source(step).tensor(weight.name)
        self._check_shape(weight, step, tuple(tensor.shape))
        self._recent[step == 0] = (weight.name, step, tensor)
        return tensor

    def _check_shape(self, weight: Weight, step: int, shape: tuple[int, ...]) -> None:
        if shape != weight.shape:
            place = f"{self.trajectory.model_folder(step)}: {weight.name}"
            raise WorkError(f"{place}: its shape is {shape}, but the base's is {weight.shape}")

    def _check_finite(self, weight: Weight, step: int, bad: int) -> None:
        if bad:
            place = f"{self.trajectory.model_folder(step)}: {weight.name}"
            raise NotFiniteError(f"{place}: {bad} of {math.prod(weight.shape)} entries are NaN or infinite")

    def _source(self, step: int) -> InLayout:
        if step not in self._sources:
            self._sources[step] = self.trajectory.source(step)
        return self._sources[step]


def _subtract(after: Tensor, before: Tensor, panel: Tensor, start: int) -> None:
    a, b = (whole[start : start + len(panel)].to(panel.device) for whole in (after, before))
    D = panel.view(a.shape)
    D.copy_(a)
    D -= b if b.dtype in _PROMOTED else b.float()


def _multiply(left: Tensor, right: Tensor, panel: Tensor, start: int) -> None:
    torch.mm(left[start : start + len(panel)].to(panel.device), right.to(panel.device), out=panel)


def _is_finite(tensor: Tensor) -> bool:
    """Told by the extremes: a NaN makes both of them NaN."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _not_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    if tensor.dtype not in _PROMOTED:
        tensor = tensor.double()
    return 0 if _is_finite(tensor) else tensor.numel() - int(torch.isfinite(tensor).sum())


@dataclass(frozen=True)
class TripletsOverSteps:
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


def movement(reader: UpdateReader, weight: Weight, k: int) -> TripletsOverSteps:
    """The k leading singular triplets of a weight's update at every kept step that the reader may read."""
    steps = reader.trajectory.steps
    norms, found = torch.empty(len(steps), dtype=torch.float64), list[TruncatedSVD]()
    for t, step in enumerate(steps):
        D = reader.update(weight, step)
        norms[t] = frobenius(D)
        found.append(truncated_svd(D, k, found[-1] if found else None))
    u, s, v = (torch.stack(parts) for parts in ([f.u for f in found], [f.s for f in found], [f.v for f in found]))
    signs = aligned_signs(u, s)  # (T, k)
    return TripletsOverSteps(steps, norms, u * signs[:, None, :], s, v * signs[:, None, :])


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

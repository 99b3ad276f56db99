"""Predictions that are weighted sums of a window's updates: W* - W0 = sum_t h(t) D(t), tensor by tensor.

With the singular value decomposition of a tensor's movement, M = A S V^T for the rows vec(D(t)) of M (T x d), the rows
of A S are its coordinates; A and S come from the T x T inner products, so M is never held. A point x in coordinates is
the update h M with h = x S^-1 A^T.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlstride.dynamics.gram import update_gram
from rlstride.dynamics.pls import Array
from rlstride.progress import track
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.store import Trajectory

_SMALLEST = 1e-7  # singular values below this share of the first are rounding: G has their squares


@dataclass(frozen=True)
class Coordinates:
    """A tensor's movement in its leading directions.

    Attributes:
        a: left singular vectors of M, (T, k); signs such that the last step's coordinates are not negative.
        s: its singular values, (k,), all above rounding; k is 0 where nothing moved.
    """

    a: Array
    s: Array

    @property
    def path(self) -> Array:
        """x(t), (T, k)."""
        path: Array = self.a * self.s
        return path

    def weights_of(self, x: Array) -> Array:
        """h (T,) with h M = the update at the point x (k,)."""
        weights: Array = self.a @ (x / self.s)
        return weights


def coordinates(G: Array, k: int) -> Coordinates:
    """At most ``k`` leading coordinates of positions with inner products G (T, T)."""
    values, vectors = np.linalg.eigh(G)
    s = np.sqrt(np.maximum(values[::-1][:k], 0))
    kept = s > _SMALLEST * max(float(s[0]), np.finfo(float).tiny) if len(s) else np.zeros(0, dtype=bool)
    a = vectors[:, ::-1][:, :k][:, kept]
    return Coordinates(a * np.where(a[-1] < 0, -1.0, 1.0), s[kept])


def window_coordinates(window: Trajectory, k: int, name: str) -> dict[str, Coordinates]:
    """The coordinates of every tensor of a model over a window; one tensor at a time is read."""
    reader = UpdateReader(window)
    return {
        weight.name: coordinates(update_gram(reader, weight), k)
        for weight in track(reader.weights, f"{name}: tensors, {len(window.steps)} steps")
    }


def summed_updates(window: Trajectory, weights: Mapping[str, Array]) -> Iterator[tuple[str, Tensor]]:
    """sum_t h(t) D(t), float64, of the tensors that ``weights`` names with their h (T,)."""
    reader = UpdateReader(window)
    for weight in reader.weights:
        if weight.name in weights:
            total = torch.zeros(weight.shape, dtype=torch.float64)
            for step, h in zip(window.steps, weights[weight.name].tolist(), strict=True):
                if h:
                    total += h * reader.update(weight, step).double()
            yield weight.name, total

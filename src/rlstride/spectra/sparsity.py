"""What the entries of an update tell by themselves, gathered panel by panel while each panel is in the cache."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Sparsity:
    """|D|F, the largest |d|, and how many |d| are within each tolerance, of an update that is added in panels.

    Attributes:
        largest: the largest |d| so far; NaN or infinite where an entry is.
    """

    def __init__(self, tolerances: Sequence[float]) -> None:
        self._tolerances = list(tolerances)
        self._within = [0] * len(self._tolerances)
        self._squares = 0.0
        self._size = 0
        self.largest = 0.0

    def add(self, D: Tensor) -> None:
        """Takes a panel of the update, of any shape."""
        if D.numel() == 0:
            return
        magnitude = D.abs()
        largest = float(magnitude.max())
        if not (largest <= self.largest or math.isnan(self.largest)):
            self.largest = largest
        self._squares += float(torch.linalg.vector_norm(D, dtype=torch.float64)) ** 2
        self._size += D.numel()
        for i, tolerance in enumerate(self._tolerances):
            self._within[i] += D.numel() if largest <= tolerance else _count_within(magnitude, tolerance)

    @property
    def finite(self) -> bool:
        """Whether every entry is a finite number."""
        return math.isfinite(self.largest)

    @property
    def frobenius(self) -> float:
        """|D|F, summed in float64."""
        return math.sqrt(self._squares)

    @property
    def sparsities(self) -> list[float]:
        """For each tolerance the share of entries with |d| <= tolerance."""
        return [count / max(1, self._size) for count in self._within]


def _count_within(magnitude: Tensor, tolerance: float) -> int:
    """How many entries are at most the tolerance, compared in their own precision."""
    if magnitude.is_cuda:
        return int(torch.count_nonzero(magnitude <= tolerance))
    return int(np.count_nonzero(magnitude.numpy() <= tolerance))  # several times faster than torch on a CPU

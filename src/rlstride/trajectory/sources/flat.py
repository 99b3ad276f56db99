"""Tensors that lie in flat vectors, as optimisers keep them: cut out when they are asked for, never before."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class FlatVector:
    """One-dimensional tensors end to end, without putting them together.

    Attributes:
        dtype: theirs.

    Raises:
        ValueError: there is none, or they are not of one dimension and one dtype.
    """

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces = [piece.detach() for piece in pieces]
        dtypes = {piece.dtype for piece in self._pieces}
        if len(dtypes) != 1 or any(piece.ndim != 1 or piece.layout is not torch.strided for piece in self._pieces):
            raise ValueError("expected plain vectors of one dtype")
        self.dtype = dtypes.pop()

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def cut(self, start: int, stop: int) -> list[Tensor]:
        """Elements ``start`` to ``stop`` (exclusive): a view of each piece that has some of them."""
        found, offset = [], 0
        for piece in self._pieces:
            first, last = max(start - offset, 0), min(stop - offset, len(piece))
            if first < last:
                found.append(piece[first:last])
            offset += len(piece)
        return found


@dataclass(frozen=True)
class FlatTensor:
    """A tensor whose elements lie in one vector, or in equal shares at the same place of several.

    Attributes:
        shape: its shape.
        vectors: the vectors; what the last share holds beyond the tensor's end is padding.
        start: where its share starts in each of them.
        share: how many elements each of them has.
    """

    shape: tuple[int, ...]
    vectors: Sequence[FlatVector]
    start: int
    share: int

    @property
    def dtype(self) -> torch.dtype:
        """The vectors' dtype."""
        return self.vectors[0].dtype

    def whole(self) -> Tensor:
        """The tensor; a view where it lies in one piece."""
        return self._elements(0, math.prod(self.shape)).reshape(self.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive) of the first dimension, without the rest."""
        row = math.prod(self.shape[1:])
        return self._elements(start * row, stop * row).reshape(stop - start, *self.shape[1:])

    def _elements(self, start: int, stop: int) -> Tensor:
        pieces: list[Tensor] = []
        for index, vector in enumerate(self.vectors):
            before = index * self.share
            first, last = max(start - before, 0), min(stop - before, self.share)
            if first < last:
                pieces += vector.cut(self.start + first, self.start + last)
        if not pieces:
            return torch.empty(0, dtype=self.dtype)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

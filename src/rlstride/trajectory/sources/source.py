"""What every checkpoint can do, however it is stored."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

_NOT_WEIGHTS = (
    *("optim", "optimizer", "optimizers", "optimizer_state"),
    *("lr_scheduler", "scheduler", "dataloader", "rng", "train_state"),
)


def of_models(keys: Iterable[str]) -> list[str]:
    """Those of a training checkpoint's keys that are not an optimiser's, a schedule's or a data loader's."""
    return [key for key in keys if key.split(".", 1)[0] not in _NOT_WEIGHTS]


class NamedTensors(Protocol):
    """A model's tensors, each there when it is asked for."""

    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is read, without reading its data."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor in its stored dtype, on the CPU.

        Raises:
            RequestError: there is no such tensor, or its file is damaged.
        """
        ...


class TensorSource(NamedTensors, Protocol):
    """A checkpoint whose tensors are read lazily.

    Attributes:
        path: the folder that it is read from.
    """

    path: Path

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading its data."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive) of a tensor's first dimension; errors are those of :meth:`tensor`."""
        ...


class ModelSource(TensorSource, Protocol):
    """A checkpoint under its model's own names, which knows how the model uses them."""

    def tied_to(self, name: str) -> str | None:
        """The other name of a tensor that two modules share, such as the output head's of the embedding."""
        ...

    def is_transposed(self, name: str) -> bool | None:
        """Whether a matrix is stored as (in, out), as GPT-2's are; None where nothing tells."""
        ...


class StoredSource(TensorSource, Protocol):
    """A checkpoint as it lies on disk."""

    def files(self) -> list[str]:
        """The names of the files that hold the weights, relative to the folder."""
        ...

    def problems(self) -> list[str]:
        """What is wrong with the files, a sentence each, as far as it shows without reading the weights."""
        ...


def remark_on(source: StoredSource) -> str | None:
    """What to know of how a checkpoint is read, such as in a narrower dtype than it could be; None mostly."""
    remark: str | None = getattr(source, "remark", None)
    return remark

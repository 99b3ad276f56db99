"""The updates that edits are made of: of the files as they are, of both sides rounded to bfloat16, or what that adds.

- ``stored``: D = Wt - W0, on the base as stored.
- ``bf16``: D_bf16 = bf16(Wt) - bf16(W0), on the rounded base: what bfloat16 checkpoints alone can be taken apart into.
- ``rounding``: R = D_bf16 - (<D_bf16, D> / <D, D>) D, on the base as stored. Where rounding hides a change, the plain
  difference D_bf16 - D is minus the update; R has no part along it, and so does not undo the run.

Everything is computed in float32 at least: values are rounded, dtypes are not.
"""

import torch
from torch import Tensor

from rlstride.config.variants import Source
from rlstride.spectra.grid import on_bf16_grid
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.compare import dtype_of_edits
from rlstride.trajectory.scope import Weight


def without_part_along(tensor: Tensor, direction: Tensor) -> Tensor:
    """X - (<X, D> / <D, D>) D in float64; X itself where D = 0."""
    X, D = tensor.double(), direction.double()
    length = float(D.square().sum())
    return X - float((X * D).sum()) / length * D if length > 0 else X


def kept_tensor(reader: UpdateReader, weight: Weight, step: int, source: Source) -> Tensor:
    """A step's tensor, 0 for the base, as edits of a source see it. Errors are those of the reader."""
    tensor = reader.stored(weight, step)
    return on_bf16_grid(tensor) if source == "bf16" else tensor


def update_of(reader: UpdateReader, weight: Weight, step: int, source: Source) -> Tensor:
    """The update that is edited, shape of the weight: float32, of ``rounding`` float64.

    Errors are those of the reader.
    """
    if source == "stored":
        return reader.update(weight, step)
    after, before = (on_bf16_grid(reader.stored(weight, at)).float() for at in (step, 0))
    rounded = after - before
    return rounded if source == "bf16" else without_part_along(rounded, reader.update(weight, step))


def dtype_of_source(reader: UpdateReader, weight: Weight, step: int, source: Source) -> torch.dtype:
    """In which :func:`kept_tensor` gives a tensor."""
    stored = reader.dtype(weight, step)
    return dtype_of_edits(stored, stored) if source == "bf16" and stored.is_floating_point else stored

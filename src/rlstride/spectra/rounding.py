"""rounding.parquet: each update in float32 and as bfloat16 files show it, beside what rounding alone would show.

One row for each kept step, tensor, ``update``, ``factor`` and ``dtype``.

- update: the ``run``'s own, or a null of each tensor's norm: ``random`` (independent normal entries), or
  ``random_rank_1`` (of matrices in scope).
- factor: the run's update is taken times each, so that one run says how all depends on |D|/|W|; nulls at 1.
- dtype: ``fp32``, the update itself; ``bf16``, base and step rounded; ``bf16_grid``, the base on bfloat16's grid before
  it moves, as a published base is.

Columns: step, module, layer, kind, rows, cols, in_scope, size (entries), weight_frobenius (|W|F of the base),
own_frobenius (|D|F of the update itself), frobenius (as the dtype shows it), cosine (of the two), unchanged (share of
entries that are equal), unchanged_1e-05 (that changed by at most so much); of matrices in scope share_1 (s1 / |D|F) and
energy_1, 2, 4, 8 (share of |D|F^2 in so many triplets). Of rounded updates also what is expected of a normal one of
this norm on the base's grid (:mod:`rlstride.spectra.grid`): expected_frobenius, expected_cosine, expected_unchanged,
expected_unchanged_1e-05 and, from the update's own s1, expected_share_1. A step that is stored in 16 bits has one
dtype, its own: nothing tells what was rounded away, and nothing is expected.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rlstride.atomic_files import atomic_file
from rlstride.errors import RequestError
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_table
from rlstride.spectra.grid import Expected, Grid, expected, on_bf16_grid, share_through_noise
from rlstride.spectra.krylov import leading_subspace
from rlstride.spectra.measures import PANEL_ENTRIES, frobenius
from rlstride.spectra.resumable import Part, ResumableParts
from rlstride.spectra.sparsity import Sparsity
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.scope import Weight
from rlstride.trajectory.store import Trajectory

FACTORS = (1.0, 0.3, 3.0)
TOLERANCE = 1e-5  # arXiv 2505.11711
RANKS = (1, 2, 4, 8)
_GRAM_SIDE = 2048  # up to this smaller side all eigenvalues of the Gram matrix are the cheapest leading ones
_RESIDUAL = 0.01  # of s_i: its value is then good to some 1e-3, whatever its direction


def write_rounding(
    trajectory_folder: Path,
    out_parquet: Path,
    *,
    steps: Sequence[int] | None = None,
    factors: Sequence[float] = FACTORS,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Measures what rounding to bfloat16 makes of a run's updates, and writes the table.

    Args:
        trajectory_folder: a finished trajectory.
        out_parquet: the table.
        steps: the kept steps; the last if left out.
        factors: that the run's update is taken times; 1 is always among them.
        device: ``cpu`` or ``cuda``.
        force: replace a table that exists.

    Raises:
        RequestError: there is no trajectory, step or GPU, a factor is not above 0, or the table exists.
        WorkError: checkpoints hold NaN or infinite entries.
    """
    require_free_table(out_parquet, force=force)
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch finds no CUDA device on this machine; use cpu")
    for factor in factors:
        if not 0 < factor < math.inf:
            raise RequestError(f"--factors: a factor is a number above 0, not {factor:g}")
    trajectory = Trajectory(trajectory_folder)
    asked = sorted(set(steps or [trajectory.steps[-1]]))
    for step in asked:
        if step == 0:
            raise RequestError("--steps: step 0 is the base, which has no update to round")
        trajectory.record(step)
    with ledger_entry(out_parquet.parent / "ledger", "rounding", steps=asked, device=device):
        reader = UpdateReader(trajectory)
        for sentence in _without_masters(reader, asked):
            print(f"rounding: {sentence}", file=sys.stderr)
        pairs = [(step, weight) for step in asked for weight in reader.weights]
        parts = ResumableParts(out_parquet, trajectory, [asked, list(factors), device])

        def measured(index: int) -> Part:
            step, weight = pairs[index]
            return {"rows": list(measure(reader, weight, step, factors, device))}, {}

        found = parts.complete(len(pairs), measured, "rounding: tensors", size=lambda index: 4 * pairs[index][1].size)
        rows = [row for part in found for row in part["rows"]]
        with atomic_file(out_parquet) as partial:
            pd.DataFrame(rows).to_parquet(partial, index=False)
        parts.delete()


def measure(
    reader: UpdateReader, weight: Weight, step: int, factors: Sequence[float] = FACTORS, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """One tensor's rows of a step."""
    W0, Wt = (reader.stored(weight, at).to(device) for at in (0, step))
    if not W0.is_floating_point():
        return
    rows, cols = (*weight.shape, 1, 1)[:2]
    about = {"step": step, "module": weight.module, "layer": weight.layer, "kind": weight.kind}
    about |= {"rows": rows, "cols": cols, "in_scope": weight.in_scope, "size": weight.size}
    D = reader.update(weight, step).to(device)
    side = _Side(W0.float(), None if reader.dtype(weight, step).itemsize < 4 else Grid.of(W0), weight)
    about["weight_frobenius"] = frobenius(side.base)
    if side.grid is None:
        yield about | {"update": "run", "factor": 1.0, "dtype": _short(Wt.dtype), **side.figures(D, D, None)}
        return
    for factor in dict.fromkeys((1.0, *factors)):
        after = Wt.float() if factor == 1 else None  # W0 + D is Wt up to float32's own rounding
        for row in side.rows(D if factor == 1 else factor * D, after):
            yield about | {"update": "run", "factor": factor, **row}
    for name, null in _nulls(reader, weight, step, frobenius(D)):
        for row in side.rows(null.to(device), None):
            yield about | {"update": name, "factor": 1.0, **row}


class _Side:
    """A base's tensor, on which updates are rounded.

    Attributes:
        base: float32.
        grid: bfloat16's at its entries; None where there are no masters.
    """

    def __init__(self, base: Tensor, grid: Grid | None, weight: Weight) -> None:
        self.base, self.grid, self._weight = base, grid, weight
        self._rounded = on_bf16_grid(base)
        self._on_grid = torch.equal(self._rounded, base)

    def rows(self, D: Tensor, after: Tensor | None) -> Iterator[dict[str, Any]]:
        """An update in each dtype; ``after`` is base and update in one, where that is known better."""
        own = self.figures(D, D, None)
        yield {"dtype": "fp32", **own}
        for dtype, start in (("bf16", self.base), ("bf16_grid", self._rounded)):
            moved = start + D if after is None or dtype == "bf16_grid" else after
            shown = on_bf16_grid(moved).sub_(self._rounded)
            yield {"dtype": dtype, **self.figures(shown, D, own, on_grid=dtype == "bf16_grid")}

    def figures(self, shown: Tensor, D: Tensor, own: dict[str, Any] | None, on_grid: bool = False) -> dict[str, Any]:
        """What is measured of an update as files show it, and expected of it where it was rounded."""
        entries = Sparsity([0.0, TOLERANCE])
        entries.add(shown.cpu() if not shown.is_cuda else shown)
        norm, (equal, within) = entries.frobenius, entries.sparsities
        row = {"own_frobenius": norm if own is None else own["frobenius"], "frobenius": norm}
        row |= {"cosine": _cosine(shown, D), "unchanged": equal, "unchanged_1e-05": within}
        if self._weight.in_scope:
            squares = leading_values(shown, RANKS[-1]).double().square()
            shares = {rank: float(squares[:rank].sum()) / norm**2 if norm > 0 else math.nan for rank in RANKS}
            row |= {"share_1": math.sqrt(shares[1]) if norm > 0 else math.nan}
            row |= {f"energy_{rank}": min(1.0, share) for rank, share in shares.items()}
        if own is not None and self.grid is not None and own["frobenius"] > 0:
            sigma = own["frobenius"] / math.sqrt(self._weight.size)
            at_points = on_grid or self._on_grid
            row |= self._expected(own, expected(self.grid, sigma, on_grid=at_points, tolerance=TOLERANCE))
        return row

    def _expected(self, own: dict[str, Any], seen: Expected) -> dict[str, float]:
        found = {
            "expected_frobenius": own["frobenius"] * seen.norm,
            "expected_cosine": seen.kept / seen.norm if seen.norm > 0 else math.nan,
            "expected_unchanged": seen.unchanged,
            "expected_unchanged_1e-05": seen.within,
        }
        if self._weight.in_scope:
            s1, (rows, cols) = own["share_1"] * own["frobenius"], self._weight.shape
            found["expected_share_1"] = share_through_noise(s1, own["frobenius"], rows, cols, seen)
        return found


def leading_values(D: Tensor, k: int) -> Tensor:
    """The k largest singular values of D (m, n), float64 (k,), to some 1e-3; zeros beyond min(m, n).

    Values alone: of an update under rounding noise the directions are ill-defined, and to find them takes longest.
    """
    tall = D if D.shape[0] >= D.shape[1] else D.mT
    unit = float(D.abs().max())
    if unit == 0:
        return torch.zeros(k, dtype=torch.float64)
    A = tall.float() / unit  # squares of small entries vanish in float32
    if A.shape[1] <= _GRAM_SIDE:
        squares = torch.linalg.eigvalsh(A.mT @ A).flip(0)[:k]
        values = squares.double().clamp(min=0).sqrt()
    else:
        rows, _ = leading_subspace(A, k, None, residual=_RESIDUAL, near_tie=math.inf)
        values = torch.linalg.svdvals(rows @ A.mT).double()[:k]
    found = torch.zeros(k, dtype=torch.float64)
    found[: len(values)] = unit * values.cpu()
    return found


def _nulls(reader: UpdateReader, weight: Weight, step: int, norm: float) -> Iterator[tuple[str, Tensor]]:
    """Updates of a tensor's norm that know nothing of it, float32."""
    generator = torch.Generator().manual_seed(reader.trajectory.seed_for(step, weight.module, "rounding"))
    noise = torch.randn(weight.shape, generator=generator)
    yield "random", noise.mul_(norm / max(frobenius(noise), 1e-30))
    if weight.in_scope:
        u, v = (torch.randn(side, generator=generator) for side in weight.shape)
        yield "random_rank_1", torch.outer(u / u.norm(), v / v.norm()) * norm


def _cosine(shown: Tensor, D: Tensor) -> float:
    lengths = frobenius(shown) * frobenius(D)
    panels = zip(*(torch.split(tensor.reshape(-1), PANEL_ENTRIES) for tensor in (shown, D)), strict=True)
    dot = sum(float(torch.dot(first.double(), second.double())) for first, second in panels)
    return dot / lengths if lengths > 0 else math.nan


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype).removeprefix("torch."))


def _without_masters(reader: UpdateReader, steps: Sequence[int]) -> Iterator[str]:
    """A sentence for the steps that are stored in 16 bits."""
    for step in steps:
        narrow = [weight for weight in reader.in_scope if reader.dtype(weight, step).itemsize < 4]
        if narrow:
            dtype = str(reader.dtype(narrow[0], step)).removeprefix("torch.")
            yield (
                f"step {step} is stored in {dtype}: its norm share and sparsity are those of rounded files, and no "
                "master weights tell what they were before; keep float32 checkpoints to find out"
            )

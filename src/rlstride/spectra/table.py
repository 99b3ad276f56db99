"""spectra.parquet: one row for each kept step and tensor; its singular triplets lie beside it as safetensors.

Columns: step, module, layer (-1 outside the decoder layers), kind, rows, cols, in_scope, frobenius (|D|F), sigma_1 ..
sigma_k (NaN beyond min(rows, cols)), share_1 (sigma_1 / |D|F), stable_rank, entropy_rank (NaN where only the leading
triplets were computed), tie_1 (sigma_1 / sigma_2 < 1.05), residual_1 (|D v - sigma_1 u|, or |D^T u - sigma_1 v|
where that is larger), max_abs (the largest |d|), sparsity_0 .. (share of entries with |d| <= tolerance), dtype (of the
stored checkpoint: a figure from bf16 files is not one from fp32 files), floor_frobenius and floor_share_1 (of a 16-bit
checkpoint: the expected norm of what rounding weights of the base's size to that dtype takes away, and s_1 / |E|F of
such noise; NaN for others. An update near this norm, or a share near this one, says little). Tensors out of scope have
norm, max_abs and sparsity only; one with NaN or infinite entries has no row at that step. Factors: {step}/{module}/u
(rows x k), /s (k), /v (cols x k).
"""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rlstride.atomic_files import atomic_file
from rlstride.errors import NotFiniteError, RequestError, WorkError
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_table
from rlstride.spectra.gaussian import gaussian_share
from rlstride.spectra.measures import (
    entropy_rank,
    rounding_norm,
    share_1,
    sparsity_column,
    stable_rank,
)
from rlstride.spectra.resumable import ResumableParts, holds_factors
from rlstride.spectra.sparsity import Sparsity
from rlstride.spectra.svd import TruncatedSVD, svd_of_product, truncated_svd
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.scope import Weight, listed, scope_of
from rlstride.trajectory.store import Trajectory

DEFAULT_TOLERANCES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


def write_spectra(
    trajectory_folder: Path,
    out_parquet: Path,
    *,
    rank: int | None = 8,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Measures every kept update of a trajectory and writes the table, with the factors beside it.

    Args:
        trajectory_folder: a finished trajectory.
        out_parquet: the table; factors go to the same name with the suffix ``.safetensors``.
        rank: singular triplets kept for each matrix; None keeps all.
        tolerances: absolute tolerances of the sparsity sweep.
        device: ``cpu`` or ``cuda``.
        force: replace a table that exists.

    Raises:
        RequestError: there is no trajectory, a tolerance is negative, the table exists or its name is not one, or there
            is no GPU.
        WorkError: checkpoints hold NaN or infinite entries; all the rest is in the table then.
    """
    require_free_table(out_parquet, force=force, beside={out_parquet.with_suffix(".safetensors"): holds_factors})
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch finds no CUDA device on this machine; use cpu")
    for tolerance in tolerances:
        if not tolerance >= 0:
            raise RequestError(f"--tolerances: a tolerance is a number from 0, not {tolerance:g}")
    trajectory = Trajectory(trajectory_folder)
    with ledger_entry(out_parquet.parent / "ledger", "spectra", rank=rank or "full", device=device) as found:
        reader = UpdateReader(trajectory)
        parts = ResumableParts(out_parquet, trajectory, [rank, list(tolerances), device])
        found_parts = parts.complete(
            len(reader.weights),
            lambda index: measure(reader, reader.weights[index], rank, tolerances, device),
            "spectra: tensors",
            size=lambda index: reader.stored_bytes(reader.weights[index]),
        )
        rows = [row for part in found_parts for row in part["rows"]]
        problems = [problem for part in found_parts for problem in part["problems"]]
        if rows:
            parts.join_factors(len(reader.weights), out_parquet.with_suffix(".safetensors"))
            with atomic_file(out_parquet) as partial:
                table(rows, tolerances).to_parquet(partial, index=False)
        parts.delete()
        found |= {"steps": len(trajectory.steps), "matrices": len(reader.in_scope)}
        for sentence in scope_sentences(reader, rows):
            print(f"spectra: {sentence}", file=sys.stderr)
        if problems:
            raise WorkError(f"{'; '.join(problems)}; {out_parquet} holds the rest")


def scope_sentences(reader: UpdateReader, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much of the model is in scope, what moved outside of it by the last step, and where nothing moved."""
    last = reader.trajectory.steps[-1]
    moved = {row["module"]: row["frobenius"] for row in rows if row["step"] == last and row["frobenius"] > 0}
    inside = {weight.module for weight in reader.in_scope}
    squares = {module: norm**2 for module, norm in moved.items()}
    found = [f"in scope: {scope_of(reader.weights)}"]
    if moved:
        share = sum(square for module, square in squares.items() if module in inside) / sum(squares.values())
        outside = sorted(moved.keys() - inside, key=lambda module: -moved[module])
        rest = f"outside of it: {listed(outside)}" if outside else "nothing moved outside of it"
        found.append(f"step {last}: {100 * share:.1f} % of the squared norm of the update is in scope; {rest}")
    still = {row["step"] for row in rows} - {row["step"] for row in rows if row["frobenius"] > 0}
    undefined = "every tensor is equal to the base's, so its shares are undefined"
    return found + [f"step {step}: {undefined}" for step in sorted(still)]


def measure(
    reader: UpdateReader, weight: Weight, rank: int | None, tolerances: Sequence[float], device: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One tensor's rows of the table and what is wrong with it, as ``rows`` and ``problems``; its factors by key.

    Each step's decomposition starts from the directions of the step before.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    triplets: dict[str, Tensor] = {}
    floor = cache(partial(_floor, reader, weight))
    svd: TruncatedSVD | None = None
    for step in reader.trajectory.steps:
        row: dict[str, Any] = {
            "step": step,
            **_place(weight),
            "dtype": str(reader.dtype(weight, step))[len("torch.") :],
        }
        try:
            factors = reader.factors(weight, step) if weight.in_scope else None
            whole = weight.in_scope and factors is None
            D = torch.empty(weight.shape if whole else 0, device=device)
            row |= _entries(reader, weight, step, tolerances, D if whole else None, device)
            if weight.in_scope:
                k = rank or min(weight.shape)
                svd = truncated_svd(D, k, svd) if factors is None else svd_of_product(*factors, k)
                row |= _spectrum(svd, row["frobenius"]) | floor(reader.dtype(weight, step))
                key = f"{step}/{weight.module}"
                triplets |= {f"{key}/u": svd.u.cpu(), f"{key}/s": svd.s.cpu(), f"{key}/v": svd.v.cpu()}
            rows.append(row)
        except NotFiniteError as error:
            if str(error) not in problems:  # the base's are found at every step
                problems.append(str(error))
    return {"rows": rows, "problems": problems}, triplets


def table(rows: list[dict[str, Any]], tolerances: Sequence[float]) -> pd.DataFrame:
    """The rows as a frame with the columns in the order of the module's docstring, sorted by step and module."""
    frame = pd.DataFrame(rows).sort_values(["step", "module"], ignore_index=True)
    kept = sum(column.startswith("sigma_") for column in frame.columns)
    columns = ["step", "module", "layer", "kind", "rows", "cols", "in_scope", "frobenius"]
    columns += [f"sigma_{i}" for i in range(1, kept + 1)]
    columns += ["share_1", "stable_rank", "entropy_rank", "tie_1", "residual_1", "max_abs"]
    columns += [*dict.fromkeys(map(sparsity_column, tolerances)), "dtype", "floor_frobenius", "floor_share_1"]
    return frame.reindex(columns=columns).astype({"tie_1": "boolean"})


def _place(weight: Weight) -> dict[str, Any]:
    rows, cols = (*weight.shape, 1, 1)[:2]
    return {
        "module": weight.module,
        "layer": weight.layer,
        "kind": weight.kind,
        "rows": rows,
        "cols": cols,
        "in_scope": weight.in_scope,
    }


def _entries(
    reader: UpdateReader, weight: Weight, step: int, tolerances: Sequence[float], into: Tensor | None, device: str
) -> dict[str, Any]:
    """Reads an update, into ``into`` where that is given, and tells what its entries tell by themselves."""
    entries = Sparsity(tolerances)
    for panel in reader.panels(weight, step, into, device):
        entries.add(panel)
    if not entries.finite:
        reader.raise_not_finite(weight, step)
    sparsities = dict(zip(map(sparsity_column, tolerances), entries.sparsities, strict=True))
    return {"frobenius": entries.frobenius, "max_abs": entries.largest, **sparsities}


def _floor(reader: UpdateReader, weight: Weight, dtype: torch.dtype) -> dict[str, float]:
    """The base's, and so the same at every step that is stored in this dtype."""
    if dtype not in (torch.bfloat16, torch.float16):
        return {"floor_frobenius": math.nan, "floor_share_1": math.nan}
    norm = rounding_norm(reader.stored(weight, 0), dtype)
    return {"floor_frobenius": norm, "floor_share_1": float(gaussian_share(*weight.shape))}


def _spectrum(svd: TruncatedSVD, norm: float) -> dict[str, Any]:
    sigma = svd.s.double().tolist()
    return {
        **{f"sigma_{i}": value for i, value in enumerate(sigma, start=1)},
        "share_1": share_1(norm, sigma[0]),
        "stable_rank": stable_rank(norm, sigma[0]),
        "entropy_rank": math.nan if svd.spectrum is None else entropy_rank(svd.spectrum),
        "tie_1": svd.near_tie,
        "residual_1": float(svd.residuals[0]),
    }

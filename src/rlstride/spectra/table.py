"""spectra.parquet: one row for each kept step and tensor; its singular triplets lie beside it as safetensors.

Columns: step, module, layer (-1 outside the decoder layers), kind, rows, cols, in_scope, frobenius (|D|F), sigma_1 ..
sigma_k (NaN beyond min(rows, cols)), share_1 (sigma_1 / |D|F), stable_rank, entropy_rank (NaN where only the leading
triplets were computed), tie_1 (sigma_1 / sigma_2 < 1.05), sparsity_0 .. (share of entries with |d| <= tolerance), dtype
(of the stored checkpoint: a figure from bf16 files is not one from fp32 files). Tensors out of scope have norm and
sparsity only. Factors: {step}/{module}/u (rows x k), /s (k), /v (cols x k).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.progress import track
from rlstride.spectra.measures import entropy_rank, frobenius, share_1, sparsity, sparsity_column, stable_rank
from rlstride.spectra.scope import Weight
from rlstride.spectra.svd import TruncatedSVD, truncated_svd
from rlstride.spectra.updates import UpdateReader
from rlstride.tracking.ledger import ledger_entry
from rlstride.trajectory.files import atomic_file
from rlstride.trajectory.store import Trajectory

DEFAULT_TOLERANCES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


def write_spectra(
    trajectory_folder: Path,
    out_parquet: Path,
    *,
    rank: int | None = 8,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    device: str = "cpu",
) -> None:
    """Measures every kept update of a trajectory and writes the table, with the factors beside it.

    Args:
        trajectory_folder: a finished trajectory.
        out_parquet: the table; factors go to the same name with the suffix ``.safetensors``.
        rank: singular triplets kept for each matrix; None keeps all.
        tolerances: absolute tolerances of the sparsity sweep.
        device: ``cpu`` or ``cuda``.

    Raises:
        RequestError: there is no trajectory, a tolerance is negative, the table's name is not one, or there is no GPU.
        WorkError: a checkpoint holds NaN or infinite entries.
    """
    if out_parquet.suffix != ".parquet":
        raise RequestError(f"{out_parquet}: the table's name must end in .parquet")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch finds no CUDA device on this machine; use cpu")
    for tolerance in tolerances:
        if not tolerance >= 0:
            raise RequestError(f"--tolerances: a tolerance is a number from 0, not {tolerance:g}")
    trajectory = Trajectory(trajectory_folder)
    with ledger_entry(out_parquet.parent / "ledger", "spectra", rank=rank or "full", device=device) as found:
        reader = UpdateReader(trajectory)
        rows, factors = measure(reader, rank, tolerances, device)
        with atomic_file(out_parquet.with_suffix(".safetensors")) as partial:
            save_file(factors, partial)
        with atomic_file(out_parquet) as partial:
            table(rows, tolerances).to_parquet(partial, index=False)
        found |= {"steps": len(trajectory.steps), "matrices": len(reader.in_scope)}


def measure(
    reader: UpdateReader, rank: int | None, tolerances: Sequence[float], device: str
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The table's rows, and the factors by key. One tensor is in memory at a time."""
    rows: list[dict[str, Any]] = []
    factors: dict[str, Tensor] = {}
    for weight in track(reader.weights, "spectra: tensors"):
        for step in reader.trajectory.steps:
            D = reader.update(weight, step, device)
            norm = frobenius(D)
            row = {"step": step, **_place(weight), "frobenius": norm}
            if weight.in_scope:
                svd = truncated_svd(D, rank or min(D.shape))
                row |= _spectrum(svd, norm)
                key = f"{step}/{weight.module}"
                factors |= {f"{key}/u": svd.u.cpu(), f"{key}/s": svd.s.cpu(), f"{key}/v": svd.v.cpu()}
            row |= dict(zip(map(sparsity_column, tolerances), sparsity(D, tolerances), strict=True))
            row["dtype"] = str(reader.stored(weight, step).dtype).removeprefix("torch.")
            rows.append(row)
    return rows, factors


def table(rows: list[dict[str, Any]], tolerances: Sequence[float]) -> pd.DataFrame:
    """The rows as a frame with the columns in the order of the module's docstring, sorted by step and module."""
    frame = pd.DataFrame(rows).sort_values(["step", "module"], ignore_index=True)
    kept = sum(column.startswith("sigma_") for column in frame.columns)
    columns = ["step", "module", "layer", "kind", "rows", "cols", "in_scope", "frobenius"]
    columns += [f"sigma_{i}" for i in range(1, kept + 1)]
    columns += ["share_1", "stable_rank", "entropy_rank", "tie_1"]
    columns += [*dict.fromkeys(map(sparsity_column, tolerances)), "dtype"]
    return frame[columns].astype({"tie_1": "boolean"})


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


def _spectrum(svd: TruncatedSVD, norm: float) -> dict[str, Any]:
    sigma = svd.s.double().tolist()
    return {
        **{f"sigma_{i}": value for i, value in enumerate(sigma, start=1)},
        "share_1": share_1(norm, sigma[0]),
        "stable_rank": stable_rank(norm, sigma[0]),
        "entropy_rank": math.nan if svd.spectrum is None else entropy_rank(svd.spectrum),
        "tie_1": svd.near_tie,
    }

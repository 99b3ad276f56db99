"""A run's updates in float32 and as bfloat16 files show them: the whole model in a line, beside what is expected."""

import numpy as np
import pandas as pd

from rlstride.tables.results import CellResults
from rlstride.tables.specs import TABLES

_KEYS = ["step", "update", "factor", "dtype"]


def rounding_rows(results: CellResults) -> pd.DataFrame:
    """One row for each measured step, update, factor and dtype of a cell."""
    return results.rounding if results.rounding.empty else summary(results.rounding)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of rounding.parquet over all tensors, with the columns of rounding.csv.

    Sparsity is of all tensors, all else of the matrices in scope.
    """
    groups = table.groupby(_KEYS, sort=False)
    rows = [dict(zip(_KEYS, key, strict=True)) | _figures(each) for key, each in groups if each["in_scope"].any()]
    found = pd.DataFrame(rows).reindex(columns=list(TABLES["rounding"].columns))
    return found.sort_values("step", kind="stable", ignore_index=True)


def sparsity(rows: pd.DataFrame, column: str) -> float:
    """The share of unchanged entries of several tensors together; NaN where none has it."""
    known = rows[rows[column].notna()] if column in rows else rows.iloc[:0]
    return _ratio((known[column] * known["size"]).sum(), known["size"].sum()) if len(known) else float("nan")


def _figures(every: pd.DataFrame) -> dict[str, float]:
    rows = every[every["in_scope"]]
    squares, own = rows["frobenius"] ** 2, rows["own_frobenius"]
    along = (rows["cosine"] * rows["frobenius"] * own).sum()  # <D', D>; NaN of what did not move counts nothing
    found = {
        "relative": _ratio(_norm(rows["frobenius"]), _norm(rows["weight_frobenius"])),
        "share_sum": _ratio((rows["share_1"] * rows["frobenius"]).sum(), rows["frobenius"].sum()),
        "share_mean": float(rows["share_1"].mean()),
        "cosine": _ratio(along, _norm(rows["frobenius"]) * _norm(own)),
        "unchanged": sparsity(every, "unchanged"),
        "unchanged_1e-05": sparsity(every, "unchanged_1e-05"),
        "expected_unchanged": sparsity(every, "expected_unchanged"),
        "expected_unchanged_1e-05": sparsity(every, "expected_unchanged_1e-05"),
    }
    energies = [name for name in map(str, rows.columns) if name.startswith("energy_")]
    found |= {name: _ratio((rows[name] * squares).sum(), squares.sum()) for name in energies}
    if "expected_frobenius" in rows and rows["expected_frobenius"].notna().any():
        norms = rows["expected_frobenius"]
        found["expected_relative"] = _ratio(_norm(norms), _norm(rows["weight_frobenius"]))
        found["expected_share_sum"] = _ratio((rows["expected_share_1"] * norms).sum(), norms.sum())
    return found


def _norm(norms: pd.Series) -> float:
    return float(np.sqrt((norms**2).sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")

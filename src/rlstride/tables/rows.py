"""The rows of tables that a cell's own files hold, as its stages wrote them."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from rlstride.dynamics.quantities import by_step, summary
from rlstride.study.plan import planned_jumps
from rlstride.tables.results import CellResults
from rlstride.tables.specs import TABLES


def accuracy_rows(results: CellResults) -> pd.DataFrame:
    """One row for each variant, step and decoding on test problems."""
    return results.tests


def validation_rows(results: CellResults) -> pd.DataFrame:
    """One row for the base and each kept step, and decoding, on validation problems."""
    return results.validation


def spectra_rows(results: CellResults) -> pd.DataFrame:
    """One row for each kept step, layer and kind of in-scope matrix; singular values stay in the Parquet file."""
    frame = results.spectra
    if frame.empty:
        return frame
    frame = frame[frame["in_scope"]]
    if "tie_1" in frame:
        frame = frame.assign(tie_1=frame["tie_1"].astype(int))
    measures = [name for name in ("frobenius", "share_1", "stable_rank", "entropy_rank") if name in frame]
    measures += sorted(
        (name for name in map(str, frame) if name.startswith("sparsity_")), key=lambda name: float(name[9:])
    )
    sizes = {"modules": ("module", "size"), "rows": ("rows", "first"), "cols": ("cols", "first")}
    means = {name: (name, "mean") for name in measures}
    ties = {"ties_1": ("tie_1", "sum")} if "tie_1" in frame else {}
    grouped = frame.groupby(["step", "layer", "kind"], as_index=False)
    return grouped.agg(**sizes, **means, **ties)


def benchmark_rows(results: CellResults) -> pd.DataFrame:
    """One row for each model, benchmark, metric, filter and measure."""
    frame = results.benchmarks.rename(columns={"value": "accuracy"})
    return frame if frame.empty else frame.reindex(columns=list(TABLES["benchmarks"].columns))


def drift_rows(results: CellResults) -> pd.DataFrame:
    """One row for each model whose drift was measured."""
    return results.drift


def token_rows(results: CellResults) -> pd.DataFrame:
    """One row for each of these models, place and token."""
    return results.tokens


def dynamics_rows(results: CellResults) -> pd.DataFrame:
    """One row for each quantity and rank: its mean over matrices."""
    return results.dynamics if results.dynamics.empty else summary(results.dynamics)


def movement_rows(results: CellResults) -> pd.DataFrame:
    """One row for each kept step and rank: what is measured at each step."""
    return results.dynamics if results.dynamics.empty else by_step(results.dynamics)


def training_rows(results: CellResults) -> pd.DataFrame:
    """One row for each step of training."""
    if results.manifest is None:
        return pd.DataFrame()
    return pd.DataFrame([record.model_dump() for record in results.manifest.training])


def ledger_rows(results: CellResults) -> pd.DataFrame:
    """One row for each job of a cell, and of its early stops."""
    jumps = {} if results.study is None else planned_jumps(results.study.spec)
    runs = [results, *(results.early_stop(planned.variant) for planned in jumps.values())]
    return pd.concat([entries_frame(run.ledger) for run in runs], ignore_index=True)


def entries_frame(entries: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Entries of a ledger as rows of the table."""
    return pd.DataFrame([{name: entry.get(name) for name in TABLES["ledger"].columns} for entry in entries])

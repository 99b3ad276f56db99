"""Gathers the cells' Parquet files, manifests and ledgers into the study's CSV tables, for people.

Each table is written whole or not at all, in an order that depends on its content alone, with floats at six significant
digits: the same cells give the same bytes.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from rlstride.atomic_files import atomic_file
from rlstride.dynamics.table import BY_STEP, by_step, summary
from rlstride.errors import RequestError
from rlstride.evaluation.score_tables import asked_drift, read_table, read_tests
from rlstride.ledger import read_ledger
from rlstride.stats.intervals import interval_columns
from rlstride.study.paths import CellPaths, StudyPaths, base_folder
from rlstride.study.plan import drift_steps, planned_jumps
from rlstride.study.stride_pairs import twins_of
from rlstride.study.study import Cell, Study
from rlstride.tables import extrapolation, jumps, linearity, ranks, recovery
from rlstride.tables import strides as striding_tables
from rlstride.tables.dominance import RECOVERIES, dominance_rows
from rlstride.tables.learning import learning_rows
from rlstride.trajectory.manifest import read_manifest

CELL_COLUMNS = ["study", "model", "algorithm", "seed"]
_FLOAT_FORMAT = "%.6g"
# A missing table has these columns and no row, so that its reader finds a table and the report says "not run".
_EMPTY = {
    "accuracy": ["variant", "step", "task", "split", "decoding", "n", "samples", "accuracy", "low", "high"],
    "learning": ["decoding", "n", "samples", "base", "frozen", "full", "gain", "gain_low", "gain_high", "learns"],
    "dominance": ["step", "decoding", "variant", "n", "samples", "accuracy", "low", "high", *RECOVERIES],
    "recovery": [*recovery.COLUMNS, *(column for name in recovery.MEASURES for column in interval_columns(name))],
    "ranks": [*ranks.COLUMNS, *(column for name in ranks.MEASURES for column in interval_columns(name))],
    "extrapolation": [*extrapolation.COLUMNS],
    "extrapolation-pooled": [
        *extrapolation.POOLED_COLUMNS,
        *(column for name in extrapolation.POOLED_MEASURES for column in interval_columns(name)),
    ],
    "jumps": [*jumps.COLUMNS],
    "validation": ["variant", "step", "task", "split", "decoding", "n", "samples", "accuracy", "low", "high"],
    "spectra": ["step", "layer", "kind", "modules", "rows", "cols", "frobenius", "share_1", "stable_rank"],
    "drift": [
        *("variant", "step", "task", "split", "decoding", "n", "samples", "tokens"),
        *(column for name in ("kl_to_base", "kl_from_base") for column in interval_columns(name)),
        *("kl_first", "kl_per_token", "argmax_changed", "entropy", "entropy_base"),
    ],
    "tokens": [
        *("variant", "step", "place", "token_id", "token", "positions"),
        *("probability", "probability_base", "change", "absolute_change", "share"),
    ],
    "dynamics": ["quantity", "rank", "value", "low", "high", "modules"],
    "movement": ["step", "rank", *BY_STEP],
    "linearity": [*linearity.COLUMNS],
    "strides": [*striding_tables.COLUMNS],
    "stride-progress": [*striding_tables.PROGRESS_COLUMNS],
    "training": ["step", "reward", "tokens", "seconds"],
    "ledger": ["stage", "status", "started", "seconds", "peak_rss_mib"],
}
_ORDER = {
    "accuracy": ["variant", "step", "decoding"],
    "learning": ["decoding"],
    "dominance": ["step", "decoding", "variant"],
    "extrapolation": ["window", "method", "decoding"],
    "jumps": ["jump", "decoding"],
    "validation": ["step", "decoding"],
    "spectra": ["step", "layer", "kind"],
    "drift": ["variant", "step"],
    "tokens": ["variant", "step", "place", "token_id"],
    "dynamics": ["quantity", "rank"],
    "movement": ["step", "rank"],
    "training": ["step"],
    "ledger": ["stage", "started"],
}
TABLES = tuple(_EMPTY)
_WHOLE = (
    *("seed", "step", "window_step", "last_step", "n", "samples", "tokens"),
    *("layer", "modules", "token_id", "positions"),
)
_OF_DRIFT = ("drift", "tokens")
_OF_JUMPS = ("jumps",)
_OF_STRIDES = ("strides", "stride-progress")
# Tables whose rows are of several cells.
_POOLED: dict[str, Callable[[Path, Study], pd.DataFrame]] = {
    "recovery": recovery.recovery_table,
    "ranks": ranks.ranks_table,
    "extrapolation-pooled": extrapolation.pooled_extrapolation,
    "linearity": linearity.linearity_table,
    "strides": striding_tables.strides_table,
    "stride-progress": striding_tables.progress_table,
}
# Tables that compare algorithms: the rate that each was given stands beside what it reached.
_WITH_LEARNING_RATE = ("learning", "validation")


def collect(results_dir: Path, study: Study | None, tables: Collection[str] = TABLES) -> None:
    """Writes ``results_dir/tables/*.csv``, a file for each of :data:`TABLES`.

    Args:
        results_dir: results/{study}.
        study: whose cells and controls are gathered; cells of an earlier grid stay out. None: every cell found.
        tables: the ones to write.

    Raises:
        RequestError: the folder holds no cell, or there is no table of such a name.
    """
    if unknown := [name for name in tables if name not in TABLES]:
        raise RequestError(f"--tables: there is no table {unknown[0]!r}; the tables are {', '.join(TABLES)}")
    paths = StudyPaths(results_dir)
    cells = [cell for cell in _cells(results_dir, study) if paths.cell(cell).root.is_dir()]
    if not cells:
        raise RequestError(f"{results_dir}: there is no cell (MODEL/ALGORITHM/seedN) here; run rlstride train first")
    name = study.spec.name if study else results_dir.resolve().name
    for table in tables:
        if table in _POOLED:
            pooled = pd.DataFrame() if study is None else _POOLED[table](results_dir, study)
            write_table(
                paths.tables / f"{table}.csv", pooled.reindex(columns=["study", *_EMPTY[table]]).assign(study=name)
            )
            continue
        frames = [_labelled(_READERS[table](paths.cell(cell), study), name, cell) for cell in cells]
        if study is not None and table in _WITH_LEARNING_RATE:
            rates = [study.algorithm(cell).learning_rate for cell in cells]
            frames = [frame.assign(learning_rate=rate) for frame, rate in zip(frames, rates, strict=True)]
        if table == "ledger":
            frames += _base_ledgers(results_dir, study, name)
        write_table(paths.tables / f"{table}.csv", _joined(frames, table))


def tables_of(study: Study) -> list[str]:
    """Those of :data:`TABLES` that a study's pipeline makes; the others are about stages that the study leaves out."""
    asked = {
        _OF_DRIFT: bool(drift_steps(study.spec)),
        _OF_JUMPS: bool(study.jumping_cells),
        _OF_STRIDES: bool(twins_of(study)),
    }
    left_out = {name for names, made in asked.items() if not made for name in names}
    return [name for name in TABLES if name not in left_out]


def empty_table(name: str) -> pd.DataFrame:
    """One of :data:`TABLES` without a row: what a study has of a stage that it leaves out."""
    cell_columns = ["study"] if name in _POOLED else CELL_COLUMNS
    return pd.DataFrame(columns=[*cell_columns, *_EMPTY[name]])


def write_table(file: Path, frame: pd.DataFrame) -> None:
    """Writes a CSV file whole or not at all, floats at six significant digits."""
    with atomic_file(file) as partial:
        frame.to_csv(partial, index=False, float_format=_FLOAT_FORMAT, lineterminator="\n")


def find_cells(results_dir: Path) -> list[Cell]:
    """Every cell below results/{study}, controls included, by name."""
    cells = []
    for folder in sorted(results_dir.glob("*/*/seed*")):
        seed = folder.name.removeprefix("seed")
        if folder.is_dir() and seed.isdigit():
            cells.append(Cell(folder.parent.parent.name, folder.parent.name, int(seed)))
    return cells


def _cells(results_dir: Path, study: Study | None) -> list[Cell]:
    return find_cells(results_dir) if study is None else [*study.cells, *study.control_cells]


def _accuracy(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    return read_tests(paths.accuracy, paths.ablation, study.spec if study else None)


def _learning(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    return learning_rows(paths.accuracy)


def _dominance(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    return dominance_rows(paths.accuracy, paths.ablation, study.spec if study else None)


def _extrapolation(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    """Without a study nothing tells which methods and windows were asked for."""
    return pd.DataFrame() if study is None else extrapolation.extrapolation_rows(paths, study)


def _jumps(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    """Without a study nothing tells how its runs were cut short."""
    return pd.DataFrame() if study is None else jumps.jump_rows(paths, study)


def _validation(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    return read_table(paths.validation)


def _spectra(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    """One row for each kept step, layer and kind of in-scope matrix; singular values stay in the Parquet file."""
    frame = read_table(paths.spectra)
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


def _drift(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    return asked_drift(read_table(paths.drift), study.spec if study else None)


def _tokens(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    return asked_drift(read_table(paths.drift_tokens), study.spec if study else None)


def _dynamics(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    frame = read_table(paths.dynamics)
    return frame if frame.empty else summary(frame)


def _movement(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    frame = read_table(paths.dynamics)
    return frame if frame.empty else by_step(frame)


def _training(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    if not paths.manifest.is_file():
        return pd.DataFrame()
    return pd.DataFrame([record.model_dump() for record in read_manifest(paths.trajectory).training])


def _ledger(paths: CellPaths, study: Study | None) -> pd.DataFrame:
    cut_short = [] if study is None else [paths.jump(planned.variant) for planned in planned_jumps(study.spec).values()]
    return pd.concat([_ledger_frame(run.ledger) for run in (paths, *cut_short)], ignore_index=True)


_READERS: dict[str, Callable[[CellPaths, Study | None], pd.DataFrame]] = {
    "accuracy": _accuracy,
    "learning": _learning,
    "dominance": _dominance,
    "extrapolation": _extrapolation,
    "jumps": _jumps,
    "validation": _validation,
    "spectra": _spectra,
    "drift": _drift,
    "tokens": _tokens,
    "dynamics": _dynamics,
    "movement": _movement,
    "training": _training,
    "ledger": _ledger,
}


def _ledger_frame(folder: Path) -> pd.DataFrame:
    entries = read_ledger(folder)
    return pd.DataFrame([{name: entry.get(name) for name in _EMPTY["ledger"]} for entry in entries])


def _base_ledgers(results_dir: Path, study: Study | None, name: str) -> list[pd.DataFrame]:
    """The bases' ledgers; bases are shared by studies, so they lie beside the study's folder, not in it."""
    if study is None:
        return []
    frames = []
    for model in study.models:
        frame = _ledger_frame(results_dir.parent / "bases" / "ledger" / base_folder(study, model).name)
        if not frame.empty:
            frames.append(frame.assign(study=name, model=model, algorithm="", seed=None))
    return frames


def _labelled(frame: pd.DataFrame, study: str, cell: Cell) -> pd.DataFrame:
    return frame.assign(study=study, model=cell.model, algorithm=cell.algorithm, seed=cell.seed)


def _joined(frames: list[pd.DataFrame], table: str) -> pd.DataFrame:
    """All cells' rows, cell columns first, sorted by content. Whole numbers stay whole where some are missing."""
    full = [frame for frame in frames if not frame.empty]
    if not full:
        return empty_table(table)
    joined = pd.concat(full, ignore_index=True)
    for name in _WHOLE:
        if name in joined:
            joined[name] = joined[name].astype("Int64")
    joined = joined[CELL_COLUMNS + [name for name in joined if name not in CELL_COLUMNS]]
    return joined.sort_values([*CELL_COLUMNS, *_ORDER[table]], kind="stable", ignore_index=True)

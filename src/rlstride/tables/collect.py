"""Gathers the cells' Parquet files, manifests and ledgers into the study's CSV tables, for people.

Each table is written whole or not at all, in an order that depends on its content alone, with floats at six significant
digits: the same cells give the same bytes.
"""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from rlstride.atomic_files import atomic_file
from rlstride.errors import RequestError
from rlstride.ledger import read_ledger
from rlstride.study.paths import StudyPaths, base_folder
from rlstride.study.study import Cell, Study
from rlstride.tables.results import CellResults, StudyResults
from rlstride.tables.rows import entries_frame
from rlstride.tables.specs import TABLES
from rlstride.tables.table import CELL_COLUMNS, Table

_FLOAT_FORMAT = "%.6g"
_WHOLE = (
    *("seed", "step", "window_step", "last_step", "n", "samples", "tokens", "fewshot", "limit"),
    *("layer", "modules", "token_id", "positions"),
)


def collect(results_dir: Path, study: Study | None, tables: Collection[str] = tuple(TABLES)) -> None:
    """Writes ``results_dir/tables/*.csv``, a file for each table.

    Args:
        results_dir: results/{study}.
        study: whose cells and controls are gathered; cells of an earlier grid stay out. None: every cell found.
        tables: the names of those to write.

    Raises:
        RequestError: the folder holds no cell, or there is no table of such a name.
    """
    if unknown := [name for name in tables if name not in TABLES]:
        raise RequestError(f"--tables: there is no table {unknown[0]!r}; the tables are {', '.join(TABLES)}")
    paths = StudyPaths(results_dir)
    known = find_cells(results_dir) if study is None else [*study.cells, *study.control_cells]
    cells = [cell for cell in known if paths.cell(cell).root.is_dir()]
    if not cells:
        raise RequestError(f"{results_dir}: there is no cell (MODEL/ALGORITHM/seedN) here; run rlstride train first")
    name = study.spec.name if study else results_dir.resolve().name
    results = StudyResults(results_dir, study) if study else None
    of_cells = [results.of(cell) if results else CellResults(cell, paths.cell(cell), None) for cell in cells]
    for table in (TABLES[each] for each in tables):
        frame = _pooled(table, results) if table.pooled else _by_cell(table, of_cells, results)
        write_table(paths.tables / f"{table.name}.csv", frame.assign(study=name))


def empty_table(name: str) -> pd.DataFrame:
    """A table without a row: what a study has of a stage that it leaves out."""
    return pd.DataFrame(columns=TABLES[name].header)


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


def _pooled(table: Table, results: StudyResults | None) -> pd.DataFrame:
    """Without a study nothing tells what is to be pooled."""
    frame = pd.DataFrame() if results is None else table.make_rows(results)
    return frame.reindex(columns=table.header)


def _by_cell(table: Table, cells: Collection[CellResults], results: StudyResults | None) -> pd.DataFrame:
    """All cells' rows, cell columns first, sorted by content. Whole numbers stay whole where some are missing."""
    frames = [_labelled(table, each) for each in cells]
    if table.name == "ledger" and results is not None:
        frames += _base_ledgers(results)
    full = [frame for frame in frames if not frame.empty]
    if not full:
        return empty_table(table.name)
    joined = pd.concat(full, ignore_index=True).assign(study="")
    for name in _WHOLE:
        if name in joined:
            joined[name] = joined[name].astype("Int64")
    joined = joined[[*CELL_COLUMNS, *(name for name in joined if name not in CELL_COLUMNS)]]
    return joined.sort_values([*CELL_COLUMNS, *table.order], kind="stable", ignore_index=True)


def _labelled(table: Table, results: CellResults) -> pd.DataFrame:
    cell, study = results.cell, results.study
    frame: pd.DataFrame = table.make_rows(results)
    frame = frame.assign(model=cell.model, algorithm=cell.algorithm, seed=cell.seed)
    if study is not None and table.with_learning_rate:
        frame = frame.assign(learning_rate=study.algorithm(cell).learning_rate)
    return frame


def _base_ledgers(results: StudyResults) -> list[pd.DataFrame]:
    """The bases' ledgers, which lie beside the study's folder, as studies share bases; and those of their nulls."""
    frames = []
    for model in results.study.models:
        made = results.folder.parent / "bases" / "ledger" / base_folder(results.study, model).name
        asked = StudyPaths(results.folder).nulls(model).with_name("ledger")
        frame = entries_frame([*read_ledger(made), *read_ledger(asked)])
        if not frame.empty:
            frames.append(frame.assign(model=model, algorithm="", seed=None))
    return frames

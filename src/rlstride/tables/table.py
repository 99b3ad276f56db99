"""What a table of a study is: one specification, from which collecting, rules, captions, docs and empty frames follow.

It is read by Snakemake's rules, and so imports nothing that is slow; the function that makes the rows is loaded when it
is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from rlstride.study.asks import always, has_edits, has_nulls
from rlstride.study.paths import study_paths
from rlstride.study.study import Cell, Study

CELL_COLUMNS = {
    "study": "The study's name.",
    "model": "The model's name in the study.",
    "algorithm": "The algorithm's or control's name in the study.",
    "seed": "The run's seed.",
}


def _every_cell(study: Study) -> list[Cell]:
    return study.cells


def _nothing(study: Study) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Table:
    """A table of a study: results/{study}/tables/NAME.csv.

    Attributes:
        name: of the file, the rule's wildcard and the flag ``--tables``.
        caption: what it holds, in a sentence.
        columns: what each column holds, in their order, without those that say whose row it is.
        rows: MODULE:FUNCTION below rlstride.tables, from a cell's results (a study's where ``pooled``) to a frame.
        reads: what of a cell it is made from: names of rlstride.study.paths.CellPaths.
        pooled: whether a row is of several cells; else the columns that name its cell come first.
        order: the columns after the cell's that rows are sorted by.
        more_columns: what further columns hold, which depend on the task or the study, by pattern.
        with_learning_rate: whether the rate that each algorithm was given stands in a last column.
        cells: whose results it is made from.
        is_asked: whether a study has it; a study that leaves a stage out has none of the stage's tables.
        decided_by: what of a study its content depends on, but none of its inputs: a change makes it again.
    """

    name: str
    caption: str
    columns: Mapping[str, str]
    rows: str
    reads: tuple[str, ...]
    pooled: bool = False
    order: tuple[str, ...] = ()
    more_columns: Mapping[str, str] | None = None
    with_learning_rate: bool = False
    cells: Callable[[Study], list[Cell]] = _every_cell
    is_asked: Callable[[Study], bool] = always
    decided_by: Callable[[Study], Mapping[str, Any]] = _nothing

    @property
    def whose(self) -> dict[str, str]:
        """The columns that say whose row it is."""
        return {"study": CELL_COLUMNS["study"]} if self.pooled else CELL_COLUMNS

    @property
    def header(self) -> list[str]:
        """All columns that it always has: those of an empty one."""
        return [*self.whose, *self.columns]

    def make_rows(self, results: Any) -> Any:
        """The rows of one cell's results, or of a study's where it is pooled."""
        return resolve_name(f"rlstride.tables.{self.rows}")(results)

    def inputs(self, study: Study) -> list[Path]:
        """The files of the cells that it is made from."""
        paths, cells = study_paths(study), self.cells(study)
        left_out = {"ablation": not has_edits(study), "nulls": not has_nulls(study)}
        parts = [part for part in self.reads if not left_out.get(part)]
        return list(dict.fromkeys(getattr(paths.cell(cell), part) for part in parts for cell in cells))

"""docs/tables.md: every column of every table, from the tables' specifications."""

from rlstride.tables.specs import TABLES
from rlstride.tables.table import CELL_COLUMNS, Table

_INTRO = """# Tables

`rlstride collect` writes `results/{study}/tables/NAME.csv`: tidy tables, one row for each measurement, floats at six
significant digits. The cells' Parquet files have them in full. `claims.csv` is described in [claims.md](claims.md). A
table of a stage that a study leaves out is not made. This page is written by `make docs`, from
`src/rlstride/tables/specs.py`.

Columns that say whose row it is stand first. Where rows are of one run:
"""


def dictionary() -> str:
    """The page, in Markdown."""
    parts = [_INTRO, _columns(CELL_COLUMNS), "Where runs are pooled, `study` alone.\n"]
    return "\n".join([*parts, *(_section(table) for table in TABLES.values())])


def _section(table: Table) -> str:
    of = "Rows are of several runs." if table.pooled else "Rows are of one run."
    more = table.more_columns or {}
    rate = {"learning_rate": "The rate that the algorithm was given."} if table.with_learning_rate else {}
    return f"## {table.name}.csv\n\n{table.caption} {of}\n\n{_columns({**table.columns, **more, **rate})}"


def _columns(columns: dict[str, str]) -> str:
    rows = [f"| `{name}` | {about.replace('|', chr(92) + '|')} |" for name, about in columns.items()]
    return "\n".join(["| column | meaning |", "|---|---|", *rows, ""])

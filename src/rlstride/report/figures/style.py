"""How the figures look: Okabe-Ito colours, with markers and line styles that tell the series apart in grey."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLACK, GREY = "#000000", "#6e6e6e"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
PANEL_WIDTH, PANEL_HEIGHT = 4.0, 3.2  # inches
_MOST_ACROSS = 4  # panels side by side where they form one row
RC = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "rlstride",  # ids in the SVG depend on its content alone
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Series:
    """How one series is drawn."""

    colour: str
    marker: str
    line: Any

    def line_kwargs(self, points: int = 0) -> dict[str, Any]:
        """Arguments of ``Axes.plot``; with many points only about twelve get a marker."""
        every = max(1, points // 12)
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "markersize": 5,
            "markevery": every,
            "linewidth": 1.6,
        }


def series_of(names: list[str]) -> dict[str, Series]:
    """A look for each name: the first seven differ in colour, marker and line."""
    count = len(_COLOURS)
    return {
        name: Series(_COLOURS[i % count], _MARKERS[(i + i // count) % count], _LINES[i % count])
        for i, name in enumerate(names)
    }


def panels(
    rows: list[str], columns: list[str], *, height: float = PANEL_HEIGHT, share_x: bool = True
) -> tuple[Figure, dict[Any, Axes]]:
    """Panels with common axes, one for each (row, column); a single row is wrapped, and named by its columns alone.

    Args:
        height: of a panel, in inches.
        share_x: whether the x axes are common too.
    """
    names = [(row, column) for row in rows for column in columns]
    across = min(len(columns), _MOST_ACROSS) if len(rows) == 1 else len(columns)
    down = -(-len(names) // across)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(max(5.0, PANEL_WIDTH * across), height * down + 0.6),
        sharex=share_x,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for left_over in axes.flat[len(names) :]:
        left_over.set_visible(False)
    grid = dict(zip(names, axes.flat, strict=False))
    for (row, column), panel in grid.items():
        panel.set_title(f"{row}, {column}" if row else column)
    return figure, grid


def label_outer(grid: dict[Any, Axes], x: str, y: str) -> None:
    """Names the axes once, at the grid's left and lower edge."""
    for axes in grid.values():
        spec = axes.get_subplotspec()
        if spec is None or spec.is_last_row():
            axes.set_xlabel(x)
        if spec is None or spec.is_first_col():
            axes.set_ylabel(y)


def whole_steps(grid: dict[Any, Axes]) -> None:
    """Ticks of the x axis at whole numbers only."""
    for axes in grid.values():
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_below(figure: Figure, grid: dict[Any, Axes], only: Collection[str] | None = None) -> None:
    """One legend for all panels, below them, each label once.

    Args:
        only: the labels that are shown; None shows all.
    """
    entries: dict[str, Any] = {}
    for axes in grid.values():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if only is None or label in only:
                entries.setdefault(label, handle)
    if entries:
        longest = max(map(len, entries))
        columns = int(figure.get_size_inches()[0] / (0.6 + 0.08 * longest))  # inches: handle, and a letter of size 9
        columns = min(len(entries), max(1, columns))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, fontsize=9)


def reference_line(axes: Axes, value: float, label: str, line: Any) -> None:
    """A horizontal grey line that the series are read against."""
    axes.axhline(value, color=GREY, linestyle=line, linewidth=1.2, label=label, zorder=1)

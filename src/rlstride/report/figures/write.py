"""The report's figures: PNG and SVG, each with the CSV file that it was drawn from beside it."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from rlstride.atomic_files import atomic_file, write_text
from rlstride.report.figures import style
from rlstride.report.figures.drawing import Drawing, Tables
from rlstride.report.figures.specs import FIGURES, SUFFIXES
from rlstride.study.study import Study
from rlstride.tables.collect import write_table


@dataclass(frozen=True)
class FigureFile:
    """A figure on disk: NAME.png, NAME.svg and NAME.csv. Where there was nothing to draw, the image says so."""

    name: str
    title: str
    caption: str
    folder: Path
    drawn: bool

    def file(self, suffix: str) -> Path:
        """The file with this suffix, such as ``svg``."""
        return self.folder / f"{self.name}.{suffix}"


def write_figures(tables: Tables, study: Study, folder: Path) -> list[FigureFile]:
    """Draws every figure that the study asks for. One whose data do not exist becomes an image that says so, without a
    CSV; the files of one that an earlier version of the study asked for are removed.

    Args:
        tables: the study's tables by name.
        folder: gets a PNG, an SVG and a CSV for each figure.
    """
    files = []
    for spec in FIGURES:
        if not spec.is_asked(study):
            for suffix in (*SUFFIXES, "rst"):
                (folder / f"{spec.name}.{suffix}").unlink(missing_ok=True)
            continue
        with plt.rc_context(style.RC):
            drawing: Drawing | None = spec.drawing(tables, study)
            _save(drawing or _nothing_to_draw(spec.title), folder, spec.name)
        write_text(
            folder / f"{spec.name}.rst", spec.caption.replace("|", r"\|") + "\n"
        )  # what Snakemake's own report says of it
        files.append(FigureFile(spec.name, spec.title, spec.caption, folder, drawing is not None))
    return files


def _nothing_to_draw(title: str) -> Drawing:
    figure = plt.figure(figsize=(5.5, 1.2))
    figure.text(0.5, 0.5, f"{title}:\nnot run", ha="center", va="center", color=style.GREY)
    return Drawing(figure, pd.DataFrame())


def _save(drawing: Drawing, folder: Path, name: str) -> None:
    with atomic_file(folder / f"{name}.svg") as partial:
        drawing.figure.savefig(partial, format="svg", metadata={"Date": None})
    with atomic_file(folder / f"{name}.png") as partial:
        drawing.figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
    plt.close(drawing.figure)
    if drawing.data.empty:
        (folder / f"{name}.csv").unlink(missing_ok=True)
    else:
        write_table(folder / f"{name}.csv", drawing.data)

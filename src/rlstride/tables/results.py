"""What a study's cells measured: the one door from their files to tables, claims, findings and runs in MLflow.

A cell's scores are read once, however many of these ask for them.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlstride.arrays import Floats
from rlstride.config.nulls import NULL_VARIANTS
from rlstride.config.study_file import StudyFile
from rlstride.evaluation.score_tables import asked_drift, asked_edits, metrics_file, problems_file, read_table
from rlstride.ledger import read_ledger
from rlstride.study.paths import CellPaths, StudyPaths
from rlstride.study.plan import rounding_steps
from rlstride.study.study import Cell, Study
from rlstride.trajectory.manifest import Manifest, read_manifest

SHARPEST_BASE = "sharpest_base"  # among the variants of a cell: the base at its best decoding
STRONGEST_NULL = "strongest_null"  # the base in whichever way scores best without training


@dataclass(frozen=True)
class CellResults:
    """What one cell measured. What was not run is empty.

    Attributes:
        cell: whose results they are.
        paths: where they lie.
        study: what was asked for; None takes everything that was measured.
    """

    cell: Cell
    paths: CellPaths
    study: Study | None

    @property
    def _spec(self) -> StudyFile | None:
        return self.study.spec if self.study else None

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Rows on test problems of the models that are folders: base, controls, full run, predicted ones."""
        return read_table(self.paths.accuracy)

    @cached_property
    def edits(self) -> pd.DataFrame:
        """Rows on test problems of the edited models that the study asks for, and of the full run at their steps."""
        return asked_edits(read_table(self.paths.ablation), self._spec)

    @cached_property
    def nulls(self) -> pd.DataFrame:
        """Rows on test problems of the base of the cell's model, asked in the study's other ways."""
        return _asked_nulls(read_table(self.paths.nulls), self._spec)

    @property
    def tests(self) -> pd.DataFrame:
        """All of these."""
        return _together(self.accuracy, self.nulls, self.edits)

    @cached_property
    def scores(self) -> dict[tuple[str, int, str], Floats]:
        """Scores on the test problems, (problems,), by variant, step and decoding."""
        files = (self.paths.accuracy, self.paths.nulls, self.paths.ablation)
        accuracy, nulls, edits = (read_table(problems_file(file)) for file in files)
        frame = _together(accuracy, _asked_nulls(nulls, self._spec), asked_edits(edits, self._spec))
        if frame.empty:
            return {}
        frame = frame[frame["score"].notna()].sort_values("problem")
        return {
            (str(variant), int(str(step)), str(decoding)): rows["score"].to_numpy(dtype=float)
            for (variant, step, decoding), rows in frame.groupby(["variant", "step", "decoding"], sort=True)
        }

    def last_scores(self, decoding: str) -> dict[str, Floats]:
        """Scores by variant, each at its own last step: models edited on the way are not what claims are about."""
        return {variant: each for (variant, _, at), each in self.scores.items() if at == decoding}  # steps ascend

    def sharpest_base(self) -> tuple[str, Floats] | None:
        """The base at the decoding at which it scores best, and its scores: what sharpening alone would give a run."""
        best = self._best("base")
        return best and best[1:]

    def strongest_null(self) -> tuple[str, str, Floats] | None:
        """What the base scores without training where it scores best: the variant, the decoding and the scores.

        Among the base as the task asks it (sharpest_base) and in the study's other ways, at every decoding. Chosen on
        the test problems, in the null's favour.
        """
        best = self._best("base", *NULL_VARIANTS)
        return best and (SHARPEST_BASE if best[0] == "base" else best[0], *best[1:])

    def _best(self, *variants: str) -> tuple[str, str, Floats] | None:
        """Of these variants, at every decoding, the one that scores best: its name, the decoding and the scores."""
        found = [(variant, at, each) for (variant, _, at), each in self.scores.items() if variant in variants]
        return max(found, key=lambda each: float(each[2].mean())) if found else None

    def scores_at(self, step: int, decoding: str) -> dict[str, Floats]:
        """Scores of the base, and of the full run and the models edited at one kept step."""
        return {name: each for (name, of, at), each in self.scores.items() if at == decoding and of in (0, step)}

    @cached_property
    def validation(self) -> pd.DataFrame:
        """Rows on validation problems of the base and the kept steps."""
        return read_table(self.paths.validation)

    @property
    def spectra(self) -> pd.DataFrame:
        """A row for each kept step and matrix; read anew, as it is large."""
        return read_table(self.paths.spectra)

    @cached_property
    def dynamics(self) -> pd.DataFrame:
        """A row for each matrix, rank and quantity of the movement."""
        return read_table(self.paths.dynamics)

    @property
    def benchmarks(self) -> pd.DataFrame:
        """A row for each model, benchmark, metric, filter and measure."""
        return read_table(metrics_file(self.paths.benchmarks))

    @cached_property
    def drift(self) -> pd.DataFrame:
        """How far the models that the study asks for are from the base in what they say."""
        return asked_drift(read_table(self.paths.drift), self._spec)

    @property
    def rounding(self) -> pd.DataFrame:
        """A row for each measured step, tensor, update, factor and dtype; read anew, as it is large."""
        frame, spec = read_table(self.paths.rounding), self._spec
        return frame if spec is None or frame.empty else frame[frame["step"].isin(rounding_steps(spec))]

    @property
    def tokens(self) -> pd.DataFrame:
        """Which tokens' probabilities moved in them; read anew, as it is large."""
        return asked_drift(read_table(self.paths.drift_tokens), self._spec)

    @cached_property
    def manifest(self) -> Manifest | None:
        """Of the trajectory; None where the run is not finished."""
        return read_manifest(self.paths.trajectory) if self.paths.manifest.is_file() else None

    @cached_property
    def ledger(self) -> list[dict[str, Any]]:
        """What its jobs did and cost, by time of start."""
        return read_ledger(self.paths.ledger)

    def early_stop(self, variant: str) -> "CellResults":
        """The early stop of this cell that a jump makes."""
        return CellResults(self.cell, self.paths.jump(variant), self.study)


@dataclass(frozen=True)
class StudyResults:
    """What a study's cells measured.

    Attributes:
        folder: results/{study}.
        study: what was asked for.
    """

    folder: Path
    study: Study
    _read: dict[Cell, CellResults] = field(default_factory=dict, init=False)

    @property
    def headline(self) -> str:
        """The decoding that claims are read at."""
        return self.study.spec.evaluation.headline

    def of(self, cell: Cell) -> CellResults:
        """The results of one cell."""
        if cell not in self._read:
            self._read[cell] = CellResults(cell, StudyPaths(self.folder).cell(cell), self.study)
        return self._read[cell]

    def last_scores(self, cells: list[Cell]) -> dict[Cell, dict[str, Floats]]:
        """Test scores by cell and variant at the headline decoding; a cell that was not scored has none."""
        return {cell: self.of(cell).last_scores(self.headline) for cell in cells}


def _asked_nulls(nulls: pd.DataFrame, spec: StudyFile | None) -> pd.DataFrame:
    """The rows of what was reported of a base, not of the looks on validation problems."""
    return nulls if nulls.empty else nulls[nulls["variant"].isin(NULL_VARIANTS if spec is None else spec.nulls.asked)]


def _together(*frames: pd.DataFrame) -> pd.DataFrame:
    full = [frame for frame in frames if not frame.empty]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame()


def finite(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with infinite numbers as missing ones: a table has no word for them."""
    cleaned: pd.DataFrame = frame.replace([np.inf, -np.inf], np.nan)
    return cleaned

"""A study with everything that its names refer to, and its cells: what the rest of the library is handed."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from rlstride.config.algorithms import Algorithm, Distillation, PolicyGradient
from rlstride.config.models import Chat, PublishedModel, TinyModel
from rlstride.config.study_file import StudyFile
from rlstride.config.tasks import TaskSpec
from rlstride.errors import RequestError


@dataclass(frozen=True)
class Cell:
    """One RL run of a study."""

    model: str
    algorithm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model}/{self.algorithm}/{self.seed}"


@dataclass(frozen=True)
class Study:
    """A validated study with everything that its names refer to."""

    path: Path
    spec: StudyFile
    task: TaskSpec
    models: dict[str, TinyModel | PublishedModel]
    algorithms: dict[str, Algorithm]  # sweeps expanded, controls left out
    controls: dict[str, Algorithm]

    @property
    def cells(self) -> list[Cell]:
        """The runs that are taken apart, in the order of the file. Controls are not among them."""
        return self._grid(self.algorithms)

    @property
    def rl_cells(self) -> list[Cell]:
        """The cells that learn from a reward; supervised runs, which a study may list too, are not among them."""
        return [cell for cell in self.cells if isinstance(self.algorithm(cell), PolicyGradient)]

    @property
    def jumping_cells(self) -> list[Cell]:
        """The RL cells beside which the study's jumps are run: those that do not stride."""
        if not self.spec.extrapolation.jumps:
            return []
        algorithms = {cell: self.algorithm(cell) for cell in self.rl_cells}
        return [cell for cell, found in algorithms.items() if isinstance(found, PolicyGradient) and not found.stride]

    def chat(self, model: str) -> Chat | None:
        """How one of the models is spoken to; None: prompts stay bare."""
        found = self.models.get(model)
        return found.chat if isinstance(found, PublishedModel) else None

    @property
    def control_cells(self) -> list[Cell]:
        """The runs of the controls."""
        return self._grid(self.controls)

    def cell(self, text: str) -> Cell:
        """The cell (or control) that MODEL/ALGORITHM/SEED names.

        Raises:
            RequestError: the study has no such cell.
        """
        known = {str(cell): cell for cell in [*self.cells, *self.control_cells]}
        if text not in known:
            raise RequestError(f"{self.path}: there is no cell {text!r}; the study has {', '.join(known)}")
        return known[text]

    def algorithm(self, cell: Cell) -> Algorithm:
        """The trainer and hyper-parameters of a cell."""
        return {**self.algorithms, **self.controls}[cell.algorithm]

    def teacher(self, cell: Cell) -> Cell | None:
        """The cell whose last step teaches this one; None where it has no teacher, or one from outside the study."""
        algorithm = self.algorithm(cell)
        if isinstance(algorithm, Distillation) and algorithm.teacher in {**self.algorithms, **self.controls}:
            return Cell(cell.model, algorithm.teacher, cell.seed)
        return None

    def _grid(self, algorithms: dict[str, Algorithm]) -> list[Cell]:
        return [Cell(*key) for key in itertools.product(self.models, algorithms, self.spec.seeds)]

"""Striding runs and their twins: the algorithm ``NAME-stride`` of a study jumps, ``NAME`` beside it does not."""

from dataclasses import dataclass

from rlstride.config.algorithms import Algorithm, PolicyGradient
from rlstride.config.stride import Stride
from rlstride.study.study import Cell, Study

SUFFIX = "-stride"


@dataclass(frozen=True)
class StridePair:
    """Two runs of one model and seed: plain RL, and the same algorithm with strides."""

    plain: Cell
    striding: Cell

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """Plain RL first."""
        return self.plain, self.striding


def stride_of(algorithm: Algorithm) -> Stride | None:
    """How an algorithm's runs jump; None where they never do."""
    return algorithm.stride if isinstance(algorithm, PolicyGradient) else None


def paired_algorithms(study: Study) -> dict[str, str]:
    """The name of each striding algorithm by that of its plain twin, in the order of the study."""
    twins = {name: name + SUFFIX for name in study.algorithms if name + SUFFIX in study.algorithms}
    return {
        plain: striding
        for plain, striding in twins.items()
        if stride_of(study.algorithms[striding]) and not stride_of(study.algorithms[plain])
    }


def stride_pairs_of(study: Study) -> list[StridePair]:
    """The pairs of runs that tell what striding saves, in the order of the study's cells."""
    striding = paired_algorithms(study)
    return [
        StridePair(cell, Cell(cell.model, striding[cell.algorithm], cell.seed))
        for cell in study.cells
        if cell.algorithm in striding
    ]

"""The interface of every extrapolation method: fit a window, then predict how far each tensor is from the base."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Target:
    """What is extrapolated to. A method uses one of the two.

    Attributes:
        accuracy: raw accuracy in [0, 1].
        step: step of the run.
    """

    accuracy: float
    step: int


@dataclass(frozen=True)
class Prediction:
    """A predicted model as its distance from the base.

    Attributes:
        deltas: (tensor name, W* - W0), one tensor at a time; a tensor that is not named stays at W0.
        info: what a reader must know of this prediction: plain values, for the ledger and the model's card.
    """

    deltas: Iterator[tuple[str, Tensor]]
    info: dict[str, Any] = field(default_factory=dict)


class Predictor(Protocol):
    """A method that has seen its window."""

    def predict(self, target: Target) -> Prediction:
        """The model predicted for a target."""
        ...


class Method(Protocol):
    """An extrapolation method."""

    @property
    def name(self) -> str:
        """Its name in studies, tables and on the command line."""
        ...

    @property
    def fewest_steps(self) -> int:
        """Kept steps that a window must hold."""
        ...

    @property
    def uses_accuracy(self) -> bool:
        """Whether ``fit`` needs the accuracy of the window's steps."""
        ...

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> Predictor:
        """Fits the window.

        Args:
            window: a trajectory that refuses to read past the window.
            accuracies: by kept step of the window; empty where the method does not use them.
        """
        ...

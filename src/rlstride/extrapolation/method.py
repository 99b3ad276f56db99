"""The interface of every extrapolation method: fit a window, then predict how far each tensor is from the base."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rlstride.config.methods import METHODS, MethodSpec
from rlstride.trajectory.store import Trajectory

Deltas = Iterator[tuple[str, Tensor]]  # (tensor name, W* - W0), one tensor at a time; what is not named stays at W0


class Score(Protocol):
    """A model's accuracy on validation problems, and what it cost to find out."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        ...

    @property
    def seconds(self) -> float:
        """Of generating and scoring."""
        ...

    @property
    def tokens(self) -> int:
        """Generated."""
        ...


@dataclass(frozen=True)
class Target:
    """What is extrapolated to. A method uses one of accuracy and step.

    Attributes:
        accuracy: raw accuracy in [0, 1].
        step: step of the run.
        score: scores a model on validation problems, for methods that choose how far they go; None for all others.
    """

    accuracy: float
    step: float
    score: "Callable[[Prediction], Score] | None" = None


@dataclass(frozen=True)
class Prediction:
    """A predicted model as its distance from the base.

    Attributes:
        deltas: how far each tensor is from the base.
        info: what a reader must know of this prediction: plain values, for the ledger and the model's card.
        costs: what choosing it took beside its own time: plain values, for the ledger alone.
        logit_factor: c of a model without weights of its own, whose logits are l_0 + c (l_m - l_0).
    """

    deltas: Deltas
    info: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    logit_factor: float | None = None


class Predictor(Protocol):
    """A method that has seen its window."""

    def predict(self, target: Target) -> Prediction:
        """The model predicted for a target."""
        ...


@dataclass(frozen=True)
class Method(ABC):
    """An extrapolation method.

    Attributes:
        name: that of its entry in rlstride.config.methods, which says what it needs.
    """

    name: str

    @property
    def spec(self) -> MethodSpec:
        """What studies know of it."""
        return METHODS[self.name]

    @abstractmethod
    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> Predictor:
        """Fits the window.

        Args:
            window: a trajectory that refuses to read past the window.
            accuracies: by kept step of the window; empty where the method does not use them.
        """

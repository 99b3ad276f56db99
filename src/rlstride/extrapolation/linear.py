"""Linear extrapolation (RL-Extra, ExPO): W* = W0 + (T/m) (Wm - W0) for all tensors, m the window's last kept step.

With T = m it is the window's last checkpoint itself: the floor. A method that ends below it does harm.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Linear(Method):
    """Goes on in a straight line from the base through the window's last checkpoint."""

    name: str = "linear"

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "LinearPredictor":
        return LinearPredictor(window)


LINEAR = Linear()


@dataclass(frozen=True)
class LinearPredictor:
    """The line through W0 and Wm."""

    window: Trajectory

    def predict(self, target: Target) -> Prediction:
        m = self.window.steps[-1]
        c = target.step / m
        return Prediction(scaled_updates(self.window, m, c), {"target_step": target.step, "factor": c})


def scaled_updates(window: Trajectory, step: int, factor: float) -> Iterator[tuple[str, Tensor]]:
    """factor * (Wt - W0) for every tensor, in float64: W0 plus it is then Wt to the bit where the factor is 1."""
    reader = UpdateReader(window)
    for weight in reader.weights:
        yield weight.name, factor * (reader.stored(weight, step).double() - reader.stored(weight, 0).double())


@dataclass(frozen=True)
class Last(Method):
    """Stays where the window ends."""

    name: str = "last"

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "LastPredictor":
        return LastPredictor(window)


LAST = Last()


@dataclass(frozen=True)
class LastPredictor:
    """Wm, whatever the target."""

    window: Trajectory

    def predict(self, target: Target) -> Prediction:
        return Prediction(scaled_updates(self.window, self.window.steps[-1], factor=1.0))

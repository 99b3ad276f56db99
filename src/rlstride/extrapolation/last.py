"""The window's last checkpoint: the floor. A method that ends below it does harm."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlstride.extrapolation.linear import scaled_updates
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Last(Method):
    """Stays where the window ends."""

    name: str = "last"

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "LastPredictor":
        return LastPredictor(window)


@dataclass(frozen=True)
class LastPredictor:
    """Wm, whatever the target."""

    window: Trajectory

    def predict(self, target: Target) -> Prediction:
        return Prediction(scaled_updates(self.window, self.window.steps[-1], factor=1.0))

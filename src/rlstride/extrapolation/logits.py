"""Logit extrapolation: what the model says is extrapolated, not its weights: l* = l_0 + c (l_m - l_0), c = T/m.

Temperature applies to l* as to any logits. It takes two models to say a token, the base and the window's last one, so
that it costs twice their time where it is used; nothing but the factor is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Logits(Method):
    """Goes on in a straight line from the base's logits through those of the window's last checkpoint."""

    name: str = "logits"

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "LogitsPredictor":
        return LogitsPredictor(window)


LOGITS = Logits()


@dataclass(frozen=True)
class LogitsPredictor:
    """The base and the window's last checkpoint."""

    window: Trajectory

    def predict(self, target: Target) -> Prediction:
        c = target.step / self.window.steps[-1]
        info = {"target_step": target.step, "factor": c, "weights": "none of its own: the trajectory's are needed"}
        return Prediction(iter(()), info, logit_factor=c)

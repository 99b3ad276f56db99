"""Polynomials in the step through a movement's leading coordinates, tensor by tensor, read off at the target step.

RELEX (arXiv 2605.21468) takes the first coordinate and a line: the whole movement is one fixed direction v, whose
coefficient c(t) is fitted linearly in t, and W* = W0 + c(T*) v. The second-order Taylor expansion takes three
coordinates and a parabola: value, slope and curvature at the window's end, from all of its steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlstride.dynamics.gram import polynomial_weights
from rlstride.dynamics.pls import Array
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.extrapolation.sums import Coordinates, summed_updates, window_coordinates
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Curve(Method):
    """A polynomial of a degree in the step, through so many leading coordinates."""

    degree: int
    ranks: int

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "CurvePredictor":
        return CurvePredictor(window, self, window_coordinates(window, self.ranks, self.name))


RELEX = Curve("relex", degree=1, ranks=1)
TAYLOR = Curve("taylor", degree=2, ranks=3)


@dataclass(frozen=True)
class CurvePredictor:
    """Every tensor's coordinates over the window."""

    window: Trajectory
    curve: Curve
    found: dict[str, Coordinates]

    def predict(self, target: Target) -> Prediction:
        steps = np.array(self.window.steps, dtype=float)
        weights = {
            name: each.weights_of(at_step(steps, each.path, target.step, self.curve.degree))
            for name, each in self.found.items()
        }
        unmoved = [name for name, each in self.found.items() if not len(each.s)]
        return Prediction(summed_updates(self.window, weights), {"target_step": target.step, "unmoved": unmoved})


def at_step(steps: Array, path: Array, target: float, degree: int) -> Array:
    """The least-squares polynomial through x(t) at a step.

    Args:
        steps: (T,).
        path: x(t), (T, k).
        target: the step.
        degree: of the polynomial.

    Returns:
        (k,).
    """
    point: Array = polynomial_weights(steps, np.array([target]), degree)[0] @ path
    return point

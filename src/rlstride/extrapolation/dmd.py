"""Dynamic mode decomposition (Schmid 2010) of each tensor's movement in its leading coordinates.

One kept step to the next is a linear map, x(t + 1) = x(t) K, fitted over the window by least squares; the prediction
applies it until the target step. Modes that grow are held at their present size: noise that grows is not skill.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlstride.dynamics.pls import Array
from rlstride.errors import RequestError
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.extrapolation.sums import Coordinates, summed_updates, window_coordinates
from rlstride.trajectory.store import Trajectory

_RANKS = 2


@dataclass(frozen=True)
class DMD(Method):
    """Linear dynamics from one kept step to the next."""

    name: str = "dmd"

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "DMDPredictor":
        spacing = {later - earlier for earlier, later in zip(window.steps, window.steps[1:], strict=False)}
        if len(spacing) > 1:
            gaps = ", ".join(map(str, sorted(spacing)))
            raise RequestError(f"{window.folder}: dmd needs kept steps at equal distances; these are {gaps} apart")
        return DMDPredictor(window, spacing.pop(), window_coordinates(window, _RANKS, self.name))


@dataclass(frozen=True)
class DMDPredictor:
    """Every tensor's coordinates over the window, whose steps are ``spacing`` apart."""

    window: Trajectory
    spacing: int
    found: dict[str, Coordinates]

    def predict(self, target: Target) -> Prediction:
        times = (target.step - self.window.steps[-1]) / self.spacing
        weights = {name: each.weights_of(propagated(each.path, times)) for name, each in self.found.items()}
        return Prediction(summed_updates(self.window, weights), {"target_step": target.step, "kept_steps_ahead": times})


def propagated(path: Array, times: float) -> Array:
    """x(T) K^times for the least-squares map K of consecutive positions, modes that grow or flip held in place.

    Args:
        path: x(t), (T, k).
        times: how often the map is applied; fractions are allowed.

    Returns:
        (k,), real.
    """
    if path.shape[1] == 0:
        return np.zeros(0)
    K = np.linalg.lstsq(path[:-1], path[1:], rcond=None)[0]  # (k, k)
    values, modes = np.linalg.eig(K.T)  # K.T acts on columns
    sizes = np.minimum(np.abs(values), 1.0)
    powers = sizes**times * np.exp(1j * np.angle(values) * times)
    amplitudes = np.linalg.lstsq(modes, path[-1].astype(complex), rcond=None)[0]
    point: Array = np.asarray((modes @ (powers * amplitudes)).real, dtype=np.float64)
    return point

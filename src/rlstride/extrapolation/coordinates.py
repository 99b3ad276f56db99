"""Predictions that are weighted sums of a window's updates: W* - W0 = sum_t h(t) D(t), tensor by tensor.

With the singular value decomposition of a tensor's movement, M = A S V^T for the rows vec(D(t)) of M (T x d), the rows
of A S are its coordinates; A and S come from the T x T inner products, so M is never held. A point x in coordinates is
the update h M with h = x S^-1 A^T. The methods differ in how they find x at the target step.

Curves: a polynomial in the step through the leading coordinates, read off at the target step. RELEX (arXiv 2605.21468)
takes the first coordinate and a line: the whole movement is one fixed direction v, whose coefficient c(t) is fitted
linearly in t, and W* = W0 + c(T*) v. The second-order Taylor expansion takes three coordinates and a parabola: value,
slope and curvature at the window's end, from all of its steps.

Dynamic mode decomposition (Schmid 2010): one kept step to the next is a linear map, x(t + 1) = x(t) K, fitted over the
window by least squares; the prediction applies it until the target step. Modes that grow are held at their present
size: noise that grows is not skill.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlstride.arrays import Floats
from rlstride.dynamics.gram import polynomial_weights, update_gram
from rlstride.errors import RequestError
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.progress import track
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.store import Trajectory

_SMALLEST = 1e-7  # singular values below this share of the first are rounding: G has their squares


@dataclass(frozen=True)
class Coordinates:
    """A tensor's movement in its leading directions.

    Attributes:
        a: left singular vectors of M, (T, k); signs such that the last step's coordinates are not negative.
        s: its singular values, (k,), all above rounding; k is 0 where nothing moved.
    """

    a: Floats
    s: Floats

    @property
    def path(self) -> Floats:
        """x(t), (T, k)."""
        path: Floats = self.a * self.s
        return path

    def weights_of(self, x: Floats) -> Floats:
        """h (T,) with h M = the update at the point x (k,)."""
        weights: Floats = self.a @ (x / self.s)
        return weights


def coordinates(G: Floats, k: int) -> Coordinates:
    """At most ``k`` leading coordinates of positions with inner products G (T, T)."""
    values, vectors = np.linalg.eigh(G)
    s = np.sqrt(np.maximum(values[::-1][:k], 0))
    kept = s > _SMALLEST * max(float(s[0]), np.finfo(float).tiny) if len(s) else np.zeros(0, dtype=bool)
    a = vectors[:, ::-1][:, :k][:, kept]
    return Coordinates(a * np.where(a[-1] < 0, -1.0, 1.0), s[kept])


def window_coordinates(window: Trajectory, k: int, name: str) -> dict[str, Coordinates]:
    """The coordinates of every tensor of a model over a window; one tensor at a time is read."""
    reader = UpdateReader(window)
    return {
        weight.name: coordinates(update_gram(reader, weight), k)
        for weight in track(reader.weights, f"{name}: tensors, {len(window.steps)} steps")
    }


def summed_updates(window: Trajectory, weights: Mapping[str, Floats]) -> Iterator[tuple[str, Tensor]]:
    """sum_t h(t) D(t), float64, of the tensors that ``weights`` names with their h (T,)."""
    reader = UpdateReader(window)
    for weight in reader.weights:
        if weight.name in weights:
            total = torch.zeros(weight.shape, dtype=torch.float64)
            for step, h in zip(window.steps, weights[weight.name].tolist(), strict=True):
                if h:
                    total += h * reader.update(weight, step).double()
            yield weight.name, total


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


def at_step(steps: Floats, path: Floats, target: float, degree: int) -> Floats:
    """The least-squares polynomial through x(t) at a step.

    Args:
        steps: (T,).
        path: x(t), (T, k).
        target: the step.
        degree: of the polynomial.

    Returns:
        (k,).
    """
    point: Floats = polynomial_weights(steps, np.array([target]), degree)[0] @ path
    return point


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


DMD_RANK_2 = DMD()


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


def propagated(path: Floats, times: float) -> Floats:
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
    point: Floats = np.asarray((modes @ (powers * amplitudes)).real, dtype=np.float64)
    return point

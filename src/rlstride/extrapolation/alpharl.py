"""AlphaRL (arXiv 2510.00553): the rank-1 update, regressed on accuracy and read off at the target accuracy.

Per in-scope matrix, from the window's kept steps t_1 .. m only:

1. x(t) = |D(t)|F u1(t), signs chained from the window's last step;
2. PLS1 of x on accuracy y(t), features standardised; OLS y = a z + b on the score z;
3. z* = (y* - b) / a and x* = mean + std * (z* p1), p1 the X-loadings;
4. W* = W0 + x* v1(m)^T. No rescaling; out-of-scope tensors stay at W0.

``alpharl_repo`` is what the authors' code does where it differs: x(t) = s1(t) u1(t), and W* = Wm + x* v1(m)^T, every
other tensor being that of step m. ``alpharl_oracle`` is given the fully trained run's validation accuracy as y*.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlstride.arrays import Floats
from rlstride.dynamics.pls import covariances, standardised
from rlstride.extrapolation.linear import scaled_updates
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.progress import track
from rlstride.spectra.svd import NEAR_TIE
from rlstride.spectra.updates import UpdateReader, movement
from rlstride.trajectory.store import Trajectory

_SMALLEST_EFFECT = 1e-9  # accuracy explained by one standard deviation of the score; below it the line is flat


@dataclass(frozen=True)
class AlphaRL(Method):
    """Rank-1 extrapolation to a target accuracy.

    Attributes:
        as_in_repo: whether it is the authors' code rather than their formulas.
    """

    name: str = "alpharl"
    as_in_repo: bool = False

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "AlphaRLPredictor":
        reader = UpdateReader(window)
        y = np.array([accuracies[step] for step in window.steps])
        modules = {}
        for weight in track(reader.in_scope, f"alpharl: modules, {len(window.steps)} steps"):
            found = movement(reader, weight, 2)
            s, x = found.s[-1], found.coordinates()
            if self.as_in_repo:
                x = found.s[:, :1].double() * found.u[:, :, 0].double()
            modules[weight.name] = ModuleFit(
                line=fit_line(x.numpy(), y),
                last=x[-1].numpy(),
                v=found.v[-1, :, 0].double().numpy(),
                near_tie=len(s) > 1 and float(s[1]) > 0 and float(s[0] / s[1]) < NEAR_TIE,
            )
        return AlphaRLPredictor(modules, window if self.as_in_repo else None)


ALPHARL = AlphaRL()
ALPHARL_REPO = AlphaRL("alpharl_repo", as_in_repo=True)
ALPHARL_ORACLE = AlphaRL("alpharl_oracle")


@dataclass(frozen=True)
class AccuracyLine:
    """Accuracy along the one direction in which x(t) moves with it; features (d,) include the constant ones.

    Attributes:
        mean: of x (d,).
        std: of x, ddof 1 (d,); 0 where a feature is constant.
        loadings: p1 (d,); 0 where a feature is constant.
        a: slope of accuracy on the score z.
        b: intercept.
    """

    mean: Floats
    std: Floats
    loadings: Floats
    a: float
    b: float

    def score(self, accuracy: float) -> float:
        """z* = (y* - b) / a."""
        return (accuracy - self.b) / self.a

    def at(self, accuracy: float) -> Floats:
        """x* (d,) where the line reaches an accuracy."""
        x: Floats = self.mean + self.std * (self.score(accuracy) * self.loadings)
        return x


@dataclass(frozen=True)
class ModuleFit:
    """One matrix: its line (None where there is none), x(m), v1(m), and whether v1(m) is ill-defined."""

    line: AccuracyLine | None
    last: Floats
    v: Floats
    near_tie: bool

    def at(self, accuracy: float) -> Floats | None:
        """x*, or None where there is no line or it gives no finite point."""
        x = None if self.line is None else self.line.at(accuracy)
        return x if x is not None and bool(np.isfinite(x).all()) else None

    def rank_1(self, x: Floats) -> Tensor:
        """x v1(m)^T; zero where D(m) is, which has no v1."""
        return torch.from_numpy(np.outer(x if self.last.any() else np.zeros_like(x), self.v))


@dataclass(frozen=True)
class AlphaRLPredictor:
    """The fitted matrices by tensor name.

    Attributes:
        modules: the fits.
        attached_to: the window whose last step the rank-1 updates are added to; None adds them to the base.
    """

    modules: dict[str, ModuleFit]
    attached_to: Trajectory | None = None

    def predict(self, target: Target) -> Prediction:
        points = {name: fit.at(target.accuracy) for name, fit in self.modules.items()}
        deltas = self._deltas(points) if self.attached_to is None else self._attached(points, self.attached_to)
        return Prediction(deltas, {"target_accuracy": target.accuracy, **self._info(points, target)})

    def _deltas(self, points: dict[str, Floats | None]) -> Iterator[tuple[str, Tensor]]:
        for name, point in points.items():
            fit = self.modules[name]
            yield name, fit.rank_1(fit.last if point is None else point)  # without a line: the last rank-1 model

    def _attached(self, points: dict[str, Floats | None], window: Trajectory) -> Iterator[tuple[str, Tensor]]:
        for name, D in scaled_updates(window, window.steps[-1], 1.0):
            point = points.get(name)  # without a line: the window's last checkpoint
            yield name, D if point is None else D + self.modules[name].rank_1(point)

    def _info(self, points: dict[str, Floats | None], target: Target) -> dict[str, Any]:
        """How far the prediction reaches, and every matrix for which something else than AlphaRL stands in."""
        scores, ratios = [], []
        for name, point in points.items():
            fit = self.modules[name]
            if point is not None and fit.line is not None and fit.last.any():
                scores.append(fit.line.score(target.accuracy))
                ratios.append(float(np.linalg.norm(point) / np.linalg.norm(fit.last)))
        info: dict[str, Any] = {
            "fitted": len(scores),
            "fallbacks": [name for name, point in points.items() if point is None and self.modules[name].last.any()],
            "unmoved": [name for name, fit in self.modules.items() if not fit.last.any()],
            "near_ties": [name for name, fit in self.modules.items() if fit.near_tie],
        }
        if scores:
            info["z_star_median_abs"] = float(np.median(np.abs(scores)))
            info["x_norm_over_last"] = dict(
                zip(("min", "median", "max"), np.quantile(ratios, [0, 0.5, 1]).tolist(), strict=True)
            )
        return info


def fit_line(X: Floats, y: Floats) -> AccuracyLine | None:
    """PLS1 of x on accuracy, then OLS of accuracy on the score.

    Args:
        X: rows x(t), (T, d).
        y: accuracy (T,).

    Returns:
        the line, or None where it is flat or undefined: constant accuracy, constant x, accuracy that goes with no
        direction of x (PLS would divide by its covariance with them, 0 or rounding), or a slope of about 0.
    """
    from sklearn.cross_decomposition import PLSRegression

    scaled, std = standardised(X)
    if not covariances(scaled, y).any():
        return None
    moves = std > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a residual of 0: the slope below says the same
        pls = PLSRegression(n_components=1, scale=True).fit(X[:, moves], y)
    z = pls.x_scores_[:, 0]  # (T,)
    centred = z - z.mean()
    a = float(centred @ (y - y.mean())) / float(centred @ centred)
    if abs(a) * float(z.std()) <= _SMALLEST_EFFECT:
        return None
    loadings = np.zeros(X.shape[1])
    loadings[moves] = pls.x_loadings_[:, 0]
    return AccuracyLine(X.mean(axis=0), std, loadings, a, float(y.mean() - a * z.mean()))

"""One-component partial least squares of accuracy on a vector that moves, and how far to believe it.

The closed form of scikit-learn's PLSRegression(n_components=1, scale=True): the nulls need thousands of fits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlstride.arrays import Floats

_ROUNDING = 1e-12  # a smaller share of what was subtracted or multiplied is rounding, which varies by processor


@dataclass(frozen=True)
class Line:
    """y = mean_y + (x - mean_x) . coefficients: PLS1, followed by OLS of y on its score.

    Attributes:
        mean_x: (d,).
        mean_y: mean of y.
        coefficients: (d,).
    """

    mean_x: Floats
    mean_y: float
    coefficients: Floats

    def predict(self, X: Floats) -> Floats:
        """y (n,) for the rows of X (n, d)."""
        predicted: Floats = self.mean_y + (X - self.mean_x) @ self.coefficients
        return predicted


def fit_pls1(X: Floats, y: Floats) -> Line:
    """Standardises X, takes w ~ X^T y, and fits y on the score X w.

    Constant features get the coefficient 0; so does everything where y is constant or goes with no feature.

    Args:
        X: rows x(t), (T, d).
        y: accuracy of the same steps, (T,).
    """
    mean_y = float(y.mean())
    scaled, std = standardised(X)
    w = covariances(scaled, y)
    z = scaled @ w  # (T,)
    slope = float(z @ (y - mean_y)) / float(z @ z) if w.any() else 0.0
    return Line(X.mean(axis=0), mean_y, np.divide(slope * w, std, out=np.zeros_like(w), where=std > 0))


def standardised(X: Floats) -> tuple[Floats, Floats]:
    """Features of mean 0 and variance 1 (T, d), and what they were divided by, std (d,); both 0 where X is constant.

    What moves by rounding alone is constant: its share of a fit would differ from one processor to another.
    """
    centred = X - X.mean(axis=0)
    std = np.where(~_constant(X), centred.std(axis=0, ddof=1), 0.0)
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 0), std


def covariances(scaled: Floats, y: Floats) -> Floats:
    """w = X^T (y - mean y), (d,), of standardised features; 0 where y is constant or, to rounding, goes with none."""
    centred = np.where(_constant(y), 0.0, y - y.mean())
    w: Floats = scaled.T @ centred
    floor = _ROUNDING * float(np.linalg.norm(scaled) * np.linalg.norm(centred))
    return w if float(np.linalg.norm(w)) > floor else np.zeros_like(w)


def _constant(values: Floats) -> NDArray[np.bool_]:
    """Whether what runs along the first axis differs by no more than rounding."""
    constant: NDArray[np.bool_] = np.ptp(values, axis=0) <= _ROUNDING * np.abs(values).max(axis=0)
    return constant


def r2(y: Floats, predicted: Floats) -> float:
    """1 - sum of squared errors / sum of squares about the mean; NaN where y is constant."""
    if _constant(y):
        return float("nan")
    return 1 - float(((y - predicted) ** 2).sum()) / float(((y - y.mean()) ** 2).sum())


def r2_in_sample(X: Floats, y: Floats) -> float:
    """R2 of the fit on its own data."""
    return r2(y, fit_pls1(X, y).predict(X))


def q2_leave_one_out(X: Floats, y: Floats) -> float:
    """R2 of predictions, each made by a fit that did not see its step."""
    everything = np.arange(len(y))
    predicted = np.array(
        [float(fit_pls1(X[everything != t], y[everything != t]).predict(X[[t]])[0]) for t in everything]
    )
    return r2(y, predicted)


def rmse(y: Floats, predicted: Floats) -> float:
    """Root of the mean squared error, in the unit of y."""
    return float(np.sqrt(((y - predicted) ** 2).mean()))

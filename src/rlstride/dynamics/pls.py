"""One-component partial least squares of accuracy on a vector that moves, and how far to believe it.

The closed form of scikit-learn's PLSRegression(n_components=1, scale=True): the nulls need thousands of fits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """y = mean_y + (x - mean_x) . coefficients: PLS1, followed by OLS of y on its score.

    Attributes:
        mean_x: (d,).
        mean_y: mean of y.
        coefficients: (d,).
    """

    mean_x: Array
    mean_y: float
    coefficients: Array

    def predict(self, X: Array) -> Array:
        """y (n,) for the rows of X (n, d)."""
        predicted: Array = self.mean_y + (X - self.mean_x) @ self.coefficients
        return predicted


def fit_pls1(X: Array, y: Array) -> Line:
    """Standardises X, takes w ~ X^T y, and fits y on the score X w.

    Constant features get the coefficient 0; so does everything where y is constant.

    Args:
        X: rows x(t), (T, d).
        y: accuracy of the same steps, (T,).
    """
    mean_x, mean_y = X.mean(axis=0), float(y.mean())
    centred = X - mean_x
    std = centred.std(axis=0, ddof=1)
    moves = (np.ptp(X, axis=0) > 0) & (std > 0)
    scaled = np.divide(centred, std, out=np.zeros_like(centred), where=moves)
    w = scaled.T @ (y - mean_y)
    z = scaled @ w  # (T,)
    energy = float(z @ z)
    slope = float(z @ (y - mean_y)) / energy if energy > 0 else 0.0
    return Line(mean_x, mean_y, np.divide(slope * w, std, out=np.zeros_like(w), where=moves))


def r2(y: Array, predicted: Array) -> float:
    """1 - sum of squared errors / sum of squares about the mean; NaN where y is constant."""
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - predicted) ** 2).sum()) / total if total > 0 else float("nan")


def r2_in_sample(X: Array, y: Array) -> float:
    """R2 of the fit on its own data."""
    return r2(y, fit_pls1(X, y).predict(X))


def q2_leave_one_out(X: Array, y: Array) -> float:
    """R2 of predictions, each made by a fit that did not see its step."""
    everything = np.arange(len(y))
    predicted = np.array(
        [float(fit_pls1(X[everything != t], y[everything != t]).predict(X[[t]])[0]) for t in everything]
    )
    return r2(y, predicted)


def rmse(y: Array, predicted: Array) -> float:
    """Root of the mean squared error, in the unit of y."""
    return float(np.sqrt(((y - predicted) ** 2).mean()))

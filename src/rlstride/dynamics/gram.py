"""How far a movement is a line in the step, from the inner products of its positions alone.

G[s, t] = <D(s), D(t)> over T kept steps, positions counted from the base. Whatever predicts D(t) as a weighted sum of
other steps' updates (least squares in the step, or staying where one is) has errors that G tells exactly: T x T numbers
stand for matrices of any size.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from rlstride.arrays import Floats
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.scope import Weight

Indices = NDArray[np.int_]


def update_gram(reader: UpdateReader, weight: Weight) -> Floats:
    """G (T, T) of a weight's updates; all T of them pass through memory a few rows at a time."""
    steps = reader.trajectory.steps
    G = torch.zeros(len(steps), len(steps), dtype=torch.float64)
    for parts in reader.rows_of_all(weight):
        flat = parts.flatten(1).double()  # (T, entries)
        G += flat @ flat.T
    return G.numpy()


def with_base(G: Floats) -> Floats:
    """G (T + 1, T + 1) with the base, the origin of all positions, before them."""
    whole = np.zeros((len(G) + 1, len(G) + 1))
    whole[1:, 1:] = G
    return whole


def random_walk_gram(G: Floats) -> Floats:
    """The expected Gram matrix of a walk from the base with steps as long as G's, each in a random direction.

    In as many dimensions as a weight matrix has entries, the directions of such a walk are orthogonal to within noise.
    """
    whole = with_base(G)
    norms = np.diag(whole)
    squared_lengths = np.maximum(norms[1:] + norms[:-1] - 2 * np.diag(whole, 1), 0)  # |D(t) - D(t-1)|^2, D(0) = 0
    walked = np.cumsum(squared_lengths)
    grown: Floats = np.minimum.outer(walked, walked)
    return grown


def leading_share(G: Floats) -> float:
    """Share of the movement's energy along one fixed direction: RELEX's rank-1 trajectory. NaN where nothing moved."""
    total = float(np.trace(G))
    return float(np.linalg.eigvalsh(G)[-1]) / total if total > 0 else float("nan")


def r2_in_step(G: Floats, steps: Floats, seen: int, degree: int = 1) -> float:
    """R2 of a polynomial in the step, fitted to the first ``seen`` positions, on the others (on itself: all seen).

    All entries together: 1 - sum |D(t) - D^(t)|^2 / sum |D(t) - mean|^2, the mean being that of the steps it is
    measured on. Below 0 the polynomial is worse than the mean of what it was to predict.

    Args:
        G: inner products (T, T).
        steps: the T kept steps.
        seen: how many were fitted.
        degree: of the polynomial.

    Returns:
        NaN where the positions measured on do not differ.
    """
    at = _measured_on(len(steps), seen)
    inner = G[np.ix_(at, at)]
    total = float(np.trace(inner) - inner.sum() / len(at))
    floor = 1e-12 * float(np.trace(inner))
    error = _squared_error(G, at, _polynomial(steps, seen, at, degree))
    return 1 - error / total if total > floor else float("nan")


def error_over_persistence(G: Floats, steps: Floats, seen: int, degree: int = 1) -> float:
    """RMS error of the same polynomial on the later steps, over that of "the weights stay where they are".

    Returns:
        Below 1 where it predicts better than staying; NaN where the weights do stay.
    """
    at = _measured_on(len(steps), seen)
    return _over_persistence(G, seen, at, _polynomial(steps, seen, at, degree))


def error_of_going_on(G: Floats, steps: Floats, seen: int) -> float:
    """The same for weights that go on from the last step seen, with the slope of the line through all seen.

    What a line misses of the present does not count against it here.
    """
    at = _measured_on(len(steps), seen)
    line = _polynomial(steps, seen, at, 1) - _polynomial(steps, seen, np.array([seen - 1]), 1)
    return _over_persistence(G, seen, at, _staying(len(steps), seen, at) + line)


def _over_persistence(G: Floats, seen: int, at: Indices, H: Floats) -> float:
    persistence = _squared_error(G, at, _staying(len(G), seen, at))
    floor = 1e-12 * float(np.trace(G))
    return float(np.sqrt(max(_squared_error(G, at, H), 0.0) / persistence)) if persistence > floor else float("nan")


def _staying(count: int, seen: int, at: Indices) -> Floats:
    staying = np.zeros((len(at), count))
    staying[:, seen - 1] = 1
    return staying


def _measured_on(count: int, seen: int) -> Indices:
    return np.arange(count) if seen == count else np.arange(seen, count)


def _polynomial(steps: Floats, seen: int, at: Indices, degree: int) -> Floats:
    """H (len(at), T) with D^(at) = H D; unseen steps have weight 0."""
    H = np.zeros((len(at), len(steps)))
    H[:, :seen] = polynomial_weights(steps[:seen], steps[at], degree)
    return H


def polynomial_weights(steps: Floats, at: Floats, degree: int) -> Floats:
    """The least-squares polynomial, with an intercept, as weights of what it was fitted to.

    Args:
        steps: fitted, (T,).
        at: where it is read off, (n,).
        degree: of the polynomial.

    Returns:
        H (n, T): the polynomial through x(t) has the values H x.
    """
    # Counted from the last step and in its unit, so that powers of late steps do not lose digits.
    powers, reach = (np.vander((t - steps[-1]) / steps[-1], degree + 1) for t in (steps, at))
    weights: Floats = reach @ np.linalg.pinv(powers)
    return weights


def _squared_error(G: Floats, at: Indices, H: Floats) -> float:
    """Sum over ``at`` of |D(t) - sum_s H[t, s] D(s)|^2."""
    residual = -H
    residual[np.arange(len(at)), at] += 1
    return float(np.einsum("ts,sr,tr->", residual, G, residual))

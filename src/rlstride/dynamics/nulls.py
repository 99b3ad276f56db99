"""What R2 the same fit gives where there is nothing to find, at a module's own T and d."""

import numpy as np

from rlstride.arrays import Floats
from rlstride.dynamics.pls import r2_in_sample


def r2_iid_noise(X: Floats, y: Floats, draws: int, rng: np.random.Generator) -> float:
    """Mean R2 over ``draws`` of independent standard normal features in X's place (T, d)."""
    return _mean([r2_in_sample(rng.standard_normal(X.shape), y) for _ in range(draws)])


def r2_permuted(X: Floats, y: Floats, draws: int, rng: np.random.Generator) -> float:
    """Mean R2 over ``draws`` of y in random order."""
    return _mean([r2_in_sample(X, rng.permutation(y)) for _ in range(draws)])


def r2_random_walk(X: Floats, y: Floats, draws: int, rng: np.random.Generator) -> float:
    """Mean R2 over ``draws`` of walks from the origin in random directions, each step as long as X's own.

    Args:
        X: rows x(t), (T, d); the base is the origin, so the first step's length is |x(t_1)|.
        y: accuracy, (T,).
        draws: number of walks.
        rng: source of the directions.
    """
    lengths = np.linalg.norm(np.diff(X, axis=0, prepend=0), axis=1)  # (T,)
    return _mean([r2_in_sample(random_walk(lengths, X.shape[1], rng), y) for _ in range(draws)])


def random_walk(lengths: Floats, dimension: int, rng: np.random.Generator) -> Floats:
    """A walk (T, dimension) from the origin whose steps have the given lengths (T,)."""
    directions = rng.standard_normal((len(lengths), dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    walk: Floats = np.cumsum(directions * lengths[:, None], axis=0)
    return walk


def _mean(values: list[float]) -> float:
    return float(np.mean(values))

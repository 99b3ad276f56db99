"""What dynamics.parquet says of one weight's movement; the quantities are listed in rlstride.dynamics.table."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlstride.arrays import Floats
from rlstride.dynamics.gram import (
    error_of_going_on,
    error_over_persistence,
    leading_share,
    r2_in_step,
    random_walk_gram,
    update_gram,
)
from rlstride.dynamics.nulls import r2_iid_noise, r2_permuted, r2_random_walk
from rlstride.dynamics.pls import fit_pls1, q2_leave_one_out, r2, r2_in_sample, rmse
from rlstride.dynamics.quantities import RANKS
from rlstride.spectra.updates import TripletsOverSteps, UpdateReader, movement
from rlstride.trajectory.scope import Weight

DRAWS = 10
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """One weight's rows, and the inner products that the pictures of the whole run add up.

    Attributes:
        rows: those of the table, without the weight's name.
        whole: G (T, T) of its updates.
        leading: that of x(t) = |D(t)|F u_1(t).
    """

    rows: list[dict[str, Any]]
    whole: Floats
    leading: Floats


def measure(reader: UpdateReader, weight: Weight, y: Floats) -> Measured:
    """The rows of one weight.

    Args:
        reader: reads the trajectory.
        weight: an in-scope matrix.
        y: accuracy of the kept steps (T,).
    """
    found = movement(reader, weight, RANKS)
    steps = np.array(reader.trajectory.steps, dtype=float)
    grams = [update_gram(reader, weight)]
    of_the_whole: list[dict[str, Any]] = [
        *({"features": math.prod(weight.shape)} | row for row in _of_the_step(grams[0], steps)),
        *(
            {"step": step, "quantity": "norm", "value": norm}
            for step, norm in zip(found.steps, found.norms.tolist(), strict=True)
        ),
    ]
    rows = [{"rank": 0} | row for row in of_the_whole]
    for rank in range(1, found.s.shape[1] + 1):
        X = found.coordinates(rank).numpy()  # (T, m)
        grams.append(X @ X.T)
        rng = np.random.default_rng(reader.trajectory.seed_for(weight.module, rank))
        of_rank = [*_of_accuracy(X, y, rng), *_of_the_step(grams[rank], steps), *_angles(found, rank)]
        rows += [{"rank": rank, "features": X.shape[1]} | row for row in of_rank]
    return Measured(rows, grams[0], grams[1])


def _of_accuracy(X: Floats, y: Floats, rng: np.random.Generator) -> Rows:
    """What PLS1 of accuracy on x(t) reaches, beside what it reaches where there is nothing."""
    yield {"quantity": "r2_in_sample", "value": r2_in_sample(X, y)}
    yield {"quantity": "q2_leave_one_out", "value": q2_leave_one_out(X, y)}
    for quantity, null in (
        ("r2_iid_noise", r2_iid_noise),
        ("r2_permuted", r2_permuted),
        ("r2_random_walk", r2_random_walk),
    ):
        yield {"quantity": quantity, "value": null(X, y, DRAWS, rng), "draws": DRAWS}
    half = len(y) // 2
    for quantity, value in forecast(X, y, half).items():
        yield {"window": half / len(y), "steps": half, "quantity": quantity, "value": value}


def forecast(X: Floats, y: Floats, half: int) -> dict[str, float]:
    """Errors on the steps after the first ``half``, by a fit on those and by persistence."""
    predicted = fit_pls1(X[:half], y[:half]).predict(X[half:])
    return {
        "forecast_error": rmse(y[half:], predicted),
        "forecast_error_persistence": rmse(y[half:], np.full(len(y) - half, y[half - 1])),
    }


def _of_the_step(G: Floats, steps: Floats) -> Rows:
    """How far the movement is a line in the step, in sample and on the last third, beside a random walk's figures."""
    walk, count = random_walk_gram(G), len(steps)
    seen = 2 * count // 3
    yield {"quantity": "r2_linear_in_step", "value": _r2_along_the_last(G, steps)}
    for name, positions in (("", G), ("_random_walk", walk)):
        yield {"quantity": f"step_r2_in_sample{name}", "value": r2_in_step(positions, steps, count)}
        yield {"quantity": f"trajectory_share_1{name}", "value": leading_share(positions)}
    early = {"window": seen / count, "steps": seen}
    later = r2_in_step(G, steps, seen)
    negative = float(later < 0) if not np.isnan(later) else later
    yield early | {"quantity": "step_r2_later", "value": later}
    yield early | {"quantity": "step_r2_later_negative", "value": negative}
    yield early | {"quantity": "step_r2_later_random_walk", "value": r2_in_step(walk, steps, seen)}
    yield early | {"quantity": "step_error_later", "value": error_over_persistence(G, steps, seen)}
    yield early | {"quantity": "step_error_later_from_last", "value": error_of_going_on(G, steps, seen)}
    yield early | {"quantity": "step_error_later_quadratic", "value": error_over_persistence(G, steps, seen, 2)}
    yield early | {"quantity": "step_error_later_random_walk", "value": error_over_persistence(walk, steps, seen)}


def _r2_along_the_last(G: Floats, steps: Floats) -> float:
    """R2 of <D(t), D(T)> / |D(T)|F^2 against t, by least squares with an intercept; NaN where D(T) = 0."""
    if G[-1, -1] == 0:
        return float("nan")
    projected = G[-1] / G[-1, -1]
    line = np.polyval(np.polyfit(steps, projected, 1), steps)
    return r2(projected, np.asarray(line, dtype=np.float64))


def _angles(found: TripletsOverSteps, rank: int) -> Rows:
    u = found.u[:, :, rank - 1].double().numpy()  # (T, m)
    defined = found.s[:, rank - 1].numpy() > 0
    to_last = np.where(defined & defined[-1], degrees_between(u, u[-1]), np.nan)
    to_previous = np.where(defined[1:] & defined[:-1], degrees_between(u[1:], u[:-1]), np.nan)
    for step, value in zip(found.steps, to_last, strict=True):
        yield {"step": step, "quantity": "angle_to_last_degrees", "value": float(value)}
    for step, value in zip(found.steps[1:], to_previous, strict=True):
        yield {"step": step, "quantity": "angle_to_previous_degrees", "value": float(value)}
    before = to_last[:-1][~np.isnan(to_last[:-1])]
    yield {"quantity": "angle_to_last_mean_degrees", "value": float(before.mean()) if len(before) else float("nan")}


def degrees_between(a: Floats, b: Floats) -> Floats:
    """Angle in 0..90 degrees between the lines of unit vectors, row by row: (T, d) and (T, d) or (d,) to (T,).

    By the chord rather than the cosine, whose arccos cannot tell angles below 1e-6 degrees in float64.
    """
    sign = np.where((a * b).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    chord = np.linalg.norm(a - sign * b, axis=-1)
    degrees: Floats = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    return degrees

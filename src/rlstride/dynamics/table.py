"""dynamics.parquet: how linear each module's movement is, beside what the same figures are where nothing is linear.

One row for each (module, rank, quantity); step-wise quantities have one for each step. Columns: module, layer, kind,
rank (of the singular pair: x(t) = |D(t)|F u_rank(t), signs aligned from the last step), window (share of the kept steps
that were fitted), step (0 for quantities of the whole window), steps (T, those fitted), features (d), draws (of a null;
else 0), quantity, value. Quantities:

- r2_in_sample: PLS1 of accuracy on x(t), fitted and measured on all kept steps. By itself it says nothing.
- r2_iid_noise, r2_permuted, r2_random_walk: the same on noise, on shuffled accuracies, and on a random walk with the
  same step lengths, at the same T and d; means over draws.
- q2_leave_one_out: R2 of predictions by fits that did not see the step.
- forecast_error: RMSE (accuracy) on the later half of the kept steps, fitted on the first half;
  forecast_error_persistence: that of "accuracy stays at the first half's last value".
- r2_linear_in_step (rank 0: the whole update): R2 of <D(t), D(T)> / |D(T)|F^2 against t.
- angle_to_last_degrees, angle_to_previous_degrees: of u(t), by step, in 0..90; angle_to_last_mean_degrees: the mean
  of the first over the steps before the last.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlstride.dynamics.accuracies import read_accuracies
from rlstride.dynamics.nulls import r2_iid_noise, r2_permuted, r2_random_walk
from rlstride.dynamics.pls import Array, fit_pls1, q2_leave_one_out, r2, r2_in_sample, rmse
from rlstride.errors import RequestError
from rlstride.progress import track
from rlstride.spectra.scope import Weight
from rlstride.spectra.updates import Movement, UpdateReader, movement
from rlstride.tracking.ledger import ledger_entry
from rlstride.trajectory.files import atomic_file
from rlstride.trajectory.store import Trajectory

RANKS = 5
DRAWS = 10
FEWEST_STEPS = 4  # two for each half of a forecast
_RESAMPLES = 2000
SUMMARISED = (
    "r2_in_sample",
    "r2_iid_noise",
    "r2_permuted",
    "r2_random_walk",
    "q2_leave_one_out",
    "forecast_error",
    "forecast_error_persistence",
    "r2_linear_in_step",
    "angle_to_last_mean_degrees",
)


def write_dynamics(trajectory_folder: Path, evaluations: Path, out: Path, *, decoding: str) -> None:
    """Measures how linear a trajectory is and writes the table of the module's docstring.

    Args:
        trajectory_folder: a finished trajectory.
        evaluations: validation accuracy of its kept steps.
        out: the Parquet file.
        decoding: which of the evaluations' decodings is meant.

    Raises:
        RequestError: a file or a step's accuracy is missing, or fewer than 4 steps were kept.
        WorkError: a checkpoint holds NaN or infinite entries.
    """
    trajectory = Trajectory(trajectory_folder)
    if len(trajectory.steps) < FEWEST_STEPS:
        raise RequestError(f"{trajectory_folder}: dynamics need {FEWEST_STEPS} kept steps, not {len(trajectory.steps)}")
    accuracies = read_accuracies(evaluations, trajectory.steps, decoding)
    y = np.array([accuracies[step] for step in trajectory.steps])
    with ledger_entry(out.parent / "ledger", "dynamics", decoding=decoding) as found:
        reader = UpdateReader(trajectory)
        rows = [row for weight in track(reader.in_scope, "dynamics: modules") for row in measure(reader, weight, y)]
        frame = pd.DataFrame(rows)
        with atomic_file(out) as partial:
            frame.to_parquet(partial, index=False)
        means = summary(frame)
        found |= {q: None if np.isnan(v) else v for q, v in zip(means["quantity"], means["value"], strict=True)}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The means over modules of the leading pair's quantities.

    Args:
        frame: one or several dynamics tables.

    Returns:
        quantity; value: mean over modules; low, high: 95 % of its bootstrap over modules (modules of one run are not
        independent, so it understates what another run would change); modules: how many.
    """
    rng = np.random.default_rng(0)
    rows = []
    for quantity in SUMMARISED:
        values = frame.loc[(frame["quantity"] == quantity) & (frame["rank"] <= 1), "value"].dropna().to_numpy(float)
        low = high = value = float("nan")
        if len(values):
            value = float(values.mean())
            means = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975]).tolist()
        rows.append({"quantity": quantity, "value": value, "low": low, "high": high, "modules": len(values)})
    return pd.DataFrame(rows)


def measure(reader: UpdateReader, weight: Weight, y: Array) -> Iterator[dict[str, Any]]:
    """The rows of one module.

    Args:
        reader: reads the trajectory.
        weight: an in-scope matrix.
        y: accuracy of the kept steps (T,).
    """
    found = movement(reader, weight, RANKS)
    place = {"module": weight.module, "layer": weight.layer, "kind": weight.kind}
    whole = {"window": 1.0, "step": 0, "steps": len(y), "features": weight.shape[0], "draws": 0}
    yield place | {"rank": 0} | whole | {"quantity": "r2_linear_in_step", "value": r2_linear_in_step(reader, weight)}
    for rank in range(1, found.s.shape[1] + 1):
        X = found.coordinates(rank).numpy()  # (T, m)
        rng = np.random.default_rng(_seed(reader.trajectory, weight.module, rank))
        nulls = {
            "r2_iid_noise": r2_iid_noise(X, y, DRAWS, rng),
            "r2_permuted": r2_permuted(X, y, DRAWS, rng),
            "r2_random_walk": r2_random_walk(X, y, DRAWS, rng),
        }
        fits = {"r2_in_sample": r2_in_sample(X, y), "q2_leave_one_out": q2_leave_one_out(X, y)}
        ranked = place | {"rank": rank} | whole
        for quantity, value in fits.items():
            yield ranked | {"quantity": quantity, "value": value}
        for quantity, value in nulls.items():
            yield ranked | {"quantity": quantity, "value": value, "draws": DRAWS}
        half = len(y) // 2
        for quantity, value in forecast(X, y, half).items():
            yield ranked | {"window": half / len(y), "steps": half, "quantity": quantity, "value": value}
        for row in _angles(found, rank):
            yield ranked | row


def forecast(X: Array, y: Array, half: int) -> dict[str, float]:
    """Errors on the steps after the first ``half``, by a fit on those and by persistence."""
    predicted = fit_pls1(X[:half], y[:half]).predict(X[half:])
    return {
        "forecast_error": rmse(y[half:], predicted),
        "forecast_error_persistence": rmse(y[half:], np.full(len(y) - half, y[half - 1])),
    }


def r2_linear_in_step(reader: UpdateReader, weight: Weight) -> float:
    """R2 of <D(t), D(T)> / |D(T)|F^2 against t, by least squares with an intercept; NaN where D(T) = 0."""
    steps = reader.trajectory.steps
    last = reader.update(weight, steps[-1]).double()
    scale = float((last * last).sum())
    if scale == 0:
        return float("nan")
    projected = np.array([float((reader.update(weight, step).double() * last).sum()) / scale for step in steps])
    t = np.array(steps, dtype=float)
    return r2(projected, np.polyval(np.polyfit(t, projected, 1), t))


def _angles(found: Movement, rank: int) -> Iterator[dict[str, Any]]:
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


def degrees_between(a: Array, b: Array) -> Array:
    """Angle in 0..90 degrees between the lines of unit vectors, row by row: (T, d) and (T, d) or (d,) to (T,).

    By the chord rather than the cosine, whose arccos cannot tell angles below 1e-6 degrees in float64.
    """
    sign = np.where((a * b).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    chord = np.linalg.norm(a - sign * b, axis=-1)
    degrees: Array = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    return degrees


def _seed(trajectory: Trajectory, module: str, rank: int) -> int:
    manifest = trajectory.manifest
    text = f"{manifest.base.name}/{manifest.algorithm}/{manifest.seed}/{module}/{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

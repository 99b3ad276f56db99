"""dynamics.parquet: how linear each module's movement is, beside what the same figures are where nothing is linear.

One row for each (module, rank, quantity); step-wise quantities have one for each step. Columns: module, layer, kind,
rank (of the singular pair: x(t) = |D(t)|F u_rank(t), signs aligned from the last step; 0: the whole update D(t)),
window (share of the kept steps that were fitted), step (0 for quantities of the whole window), steps (T, those fitted),
features (d), draws (of a null; else 0), quantity, value. Quantities, of ranks 1 to 5:

- r2_in_sample: PLS1 of accuracy on x(t), fitted and measured on all kept steps. By itself it says nothing.
- r2_iid_noise, r2_permuted, r2_random_walk: the same on noise, on shuffled accuracies, and on a random walk with the
  same step lengths, at the same T and d; means over draws.
- q2_leave_one_out: R2 of predictions by fits that did not see the step.
- forecast_error: RMSE (accuracy) on the later half of the kept steps, fitted on the first half;
  forecast_error_persistence: that of "accuracy stays at the first half's last value".
- angle_to_last_degrees, angle_to_previous_degrees: of u(t), by step, in 0..90; angle_to_last_mean_degrees: the mean
  of the first over the steps before the last.

of ranks 0 to 5, where a name that ends in _random_walk is what a walk of the same step lengths has:

- r2_linear_in_step: R2 of <D(t), D(T)> / |D(T)|F^2 against t.
- step_r2_in_sample: R2 of all entries as lines in the step.
- step_r2_later: that of lines fitted on the first two thirds, on the last third (10 of 15 checkpoints in NExt, arXiv
  2604.11446, which reports it below 0 for over half of the updates); step_r2_later_negative: 1 where it is.
- step_error_later: their RMS error there over that of weights that stay where they are; _from_last: of weights that go
  on from where they are with the line's slope; _quadratic: a parabola's.
- trajectory_share_1: energy of the movement along one fixed direction (RELEX, arXiv 2605.21468).

and of rank 0, norm: |D(t)|F by step. The movement of all modules together (module ``in_scope``, ranks 0 and 1) has its
pictures: pca_1, pca_2, tsne_1, tsne_2 by step, the base at the origin.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlstride.arrays import Floats
from rlstride.atomic_files import atomic_file
from rlstride.dynamics.accuracies import read_accuracies
from rlstride.dynamics.module import measure
from rlstride.dynamics.pictures import pca_path, tsne_path
from rlstride.dynamics.quantities import OF_ACCURACY, summary
from rlstride.errors import RequestError
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_table
from rlstride.progress import track
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.store import Trajectory

FEWEST_STEPS = 4  # two for each half of a forecast
ALL_MODULES = "in_scope"


def write_dynamics(
    trajectory_folder: Path, evaluations: Path, out: Path, *, decoding: str, force: bool = False
) -> None:
    """Measures how linear a trajectory is and writes the table of the module's docstring.

    Args:
        trajectory_folder: a finished trajectory.
        evaluations: validation accuracy of its kept steps.
        out: the Parquet file.
        decoding: which of the evaluations' decodings is meant.
        force: replace a table that exists.

    Raises:
        RequestError: a file or a step's accuracy is missing, fewer than 4 steps were kept, or ``out`` exists or does
            not end in .parquet.
        WorkError: a checkpoint holds NaN or infinite entries.
    """
    require_free_table(out, force=force)
    trajectory = Trajectory(trajectory_folder)
    if len(trajectory.steps) < FEWEST_STEPS:
        raise RequestError(f"{trajectory_folder}: dynamics need {FEWEST_STEPS} kept steps, not {len(trajectory.steps)}")
    accuracies = read_accuracies(evaluations, trajectory.steps, decoding)
    y = np.array([accuracies[step] for step in trajectory.steps])
    with ledger_entry(out.parent / "ledger", "dynamics", decoding=decoding) as found:
        frame = pd.DataFrame(list(_rows(UpdateReader(trajectory), y)))
        with atomic_file(out) as partial:
            frame.to_parquet(partial, index=False)
        means = summary(frame)
        leading = means[means["rank"] == np.where(means["quantity"].isin(OF_ACCURACY), 1, 0)]
        found |= {q: None if np.isnan(v) else v for q, v in zip(leading["quantity"], leading["value"], strict=True)}


def _rows(reader: UpdateReader, y: Floats) -> Iterator[dict[str, Any]]:
    defaults = {"window": 1.0, "step": 0, "steps": len(y), "features": 0, "draws": 0}
    together = {rank: np.zeros((len(y), len(y))) for rank in (0, 1)}
    for weight in track(reader.in_scope, "dynamics: modules"):
        measured = measure(reader, weight, y)
        for rank, G in enumerate((measured.whole, measured.leading)):
            together[rank] += G
        place = {"module": weight.module, "layer": weight.layer, "kind": weight.kind}
        yield from (place | defaults | row for row in measured.rows)
    place = {"module": ALL_MODULES, "layer": -1, "kind": "all"}
    for rank, G in together.items():
        paths = {"pca": pca_path(G), "tsne": tsne_path(G, reader.trajectory.seed_for(rank))}
        for name, path in paths.items():
            for step, position in zip(reader.trajectory.steps, path, strict=True):
                for axis, value in enumerate(position, start=1):
                    drawn = {"rank": rank, "step": step, "quantity": f"{name}_{axis}", "value": float(value)}
                    yield place | defaults | drawn

"""What dynamics.parquet holds, by name, and its means over modules. Free of torch: tables need no more.

What each quantity is, the docstring of rlstride.dynamics.table says.
"""

import numpy as np
import pandas as pd

RANKS = 5  # singular pairs that are followed
OF_ACCURACY = (
    "r2_in_sample",
    "r2_iid_noise",
    "r2_permuted",
    "r2_random_walk",
    "q2_leave_one_out",
    "forecast_error",
    "forecast_error_persistence",
    "angle_to_last_mean_degrees",
)
OF_THE_STEP = (
    "r2_linear_in_step",
    "step_r2_in_sample",
    "step_r2_in_sample_random_walk",
    "step_r2_later",
    "step_r2_later_negative",
    "step_r2_later_random_walk",
    "step_error_later",
    "step_error_later_from_last",
    "step_error_later_quadratic",
    "step_error_later_random_walk",
    "trajectory_share_1",
    "trajectory_share_1_random_walk",
)
SUMMARISED = (*OF_ACCURACY, *OF_THE_STEP)
BY_STEP = (
    "norm",
    "angle_to_last_degrees",
    "angle_to_previous_degrees",
    "pca_1",
    "pca_2",
    "tsne_1",
    "tsne_2",
)
_RESAMPLES = 2000


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The means over modules of each quantity.

    Args:
        frame: a dynamics table.

    Returns:
        quantity; rank; value: mean over modules; low, high: 95 % of its bootstrap over modules (modules of one run are
        not independent, so it understates what another run would change); modules: how many.
    """
    rng = np.random.default_rng(0)
    groups = dict(list(frame.groupby(["quantity", "rank"])["value"]))
    ranks = sorted(set(frame["rank"]))
    rows = []
    for quantity in SUMMARISED:
        for rank in [rank for rank in ranks if rank > 0 or quantity in OF_THE_STEP]:
            values = groups.get((quantity, rank), pd.Series(dtype=float)).dropna().to_numpy(float)
            low = high = value = float("nan")
            if len(values):
                value = float(values.mean())
                means = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
                low, high = np.quantile(means, [0.025, 0.975]).tolist()
            place = {"quantity": quantity, "rank": rank, "value": value}
            rows.append(place | {"low": low, "high": high, "modules": len(values)})
    return pd.DataFrame(rows)


def by_step(frame: pd.DataFrame) -> pd.DataFrame:
    """The means over modules of what is measured at each step; pictures are of all modules together.

    Args:
        frame: a dynamics table.

    Returns:
        step, rank, and a column for each of :data:`BY_STEP`.
    """
    wanted = frame[frame["quantity"].isin(BY_STEP) & (frame["step"] > 0)]
    wide = wanted.pivot_table(index=["step", "rank"], columns="quantity", values="value", aggfunc="mean")
    return wide.reindex(columns=list(BY_STEP)).reset_index()

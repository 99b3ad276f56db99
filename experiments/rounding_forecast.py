"""What the published sparsities of bfloat16 checkpoints say of the updates behind them, by the grid alone.

    python experiments/rounding_forecast.py

For each published sparsity (arXiv 2505.11711): the size |D|/|W| at which a normal update of normal weights shows it,
once where both sides are rounded and once where the base lies on the grid; and at that size, what a matrix of
4096 x 4096 would show of an update whose own norm share is 0.55, and which own share it takes to show the 0.188 that is
published for GRPO (arXiv 2510.00553). Nothing is measured here: where sparsity is not all rounding's, the update is
larger than this says.
"""

import argparse

import pandas as pd
from scipy.optimize import brentq

from rlstride.claims.published import NORM_SHARES, SPARSITIES
from rlstride.spectra.grid import Expected, Grid, expected, share_through_noise

_SIDE, _OWN_SHARE = 4096, 0.55


def forecast(rms: float) -> pd.DataFrame:
    """One row for each published sparsity and kind of base.

    Args:
        rms: root mean square of the weights; it matters through the tolerance of 1e-5 alone.
    """
    rows = [
        {"published": name, "sparsity": per_cent, "base": base}
        | _at(per_cent / 100, rms, on_grid=base == "on the grid")
        for name, per_cent in SPARSITIES.items()
        for base in ("not on it", "on the grid")
    ]
    return pd.DataFrame(rows)


def _at(sparsity: float, rms: float, *, on_grid: bool) -> dict[str, float]:
    grid, wanted = Grid.of_normal(rms), NORM_SHARES["grpo"]

    def seen(size: float) -> Expected:
        return expected(grid, size * rms, on_grid=on_grid)

    def shown(own: float) -> float:
        return share_through_noise(own, 1.0, _SIDE, _SIDE, found)

    size = brentq(lambda size: seen(size).within - sparsity, 1e-6, 1)
    found = seen(size)
    own = brentq(lambda share: shown(share) - wanted, 1e-4, 1) if shown(1.0) > wanted else float("nan")
    figures = {"size": size, "kept": found.kept, "noise": found.noise}
    return figures | {f"shown of {_OWN_SHARE:g}": shown(_OWN_SHARE), f"own for {wanted:g}": own}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rms", type=float, default=0.02, help="of the weights (default: %(default)s)")
    print(forecast(parser.parse_args().rms).to_string(index=False, float_format="%.3g"))

"""What an update of independent entries would have. Free of torch: tables and figures need it beside their numbers."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def gaussian_share(rows: ArrayLike, cols: ArrayLike) -> NDArray[np.float64]:
    """s1 / |E|F of independent entries of zero mean and equal variance: (sqrt(m) + sqrt(n)) / sqrt(m n).

    The limit for large matrices (Yin, Bai and Krishnaiah 1988), elementwise for several shapes.
    """
    m, n = np.asarray(rows, dtype=np.float64), np.asarray(cols, dtype=np.float64)
    share: NDArray[np.float64] = (np.sqrt(m) + np.sqrt(n)) / np.sqrt(m * n)
    return share

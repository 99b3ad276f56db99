"""What numbers are held in, where they are NumPy's."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

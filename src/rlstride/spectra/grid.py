"""bfloat16's grid: rounding to it, and what it does to an update that knows nothing of it.

Entry by entry, with the spacing h of the grid at the weight w, the update d ~ N(0, sigma^2) and x = d / h:

- both sides rounded (``on_grid=False``): where in its cell w lies is taken as uniform, which dithers. The change that
  files show is h times one of the two whole numbers around x, and d on average: P(no change) = E[(1 - |x|)+], and the
  noise has E[f (1 - f)] h^2, f the fractional part of |x|.
- the base on the grid before it moves (``on_grid=True``), as a published bfloat16 base is: the change is h round(x).
  What is below h/2 vanishes, so that only a part of d is left, E[x round(x)] / E[x^2], and noise beside it.

Cells that change their spacing on the way (one weight in 128 lies next to a power of two) are not told apart.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import erf, erfc
from torch import Tensor

from rlstride.arrays import Floats

_SIGNIFICANT = 2.0**-7  # the grid's spacing over the power of two below a number
_FINE = 10.0  # sigma / h from which a grid is as good as none: noise h^2 / 12
_ALL_INSIDE = 0.2  # sigma / h below which no |x| reaches 1 (5 sigma)


def on_bf16_grid(tensor: Tensor) -> Tensor:
    """Each entry rounded to the nearest bfloat16 number, ties to even, in float32 at least; integers as they are."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.bfloat16).to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Grid:
    """Which spacings the grid has at the entries of a tensor.

    Attributes:
        spacings: ascending (L,).
        counts: entries at each (L,).
    """

    spacings: Floats
    counts: Floats

    @classmethod
    def of(cls, W: Tensor) -> "Grid":
        """At the entries of a tensor: zeros and subnormals at the smallest."""
        exponents = (W.reshape(-1).to(torch.float32).view(torch.int32) >> 23) & 0xFF  # biased, in [0, 255]
        counts = torch.bincount(exponents, minlength=256).double().numpy()
        present = np.flatnonzero(counts)
        return cls(np.ldexp(_SIGNIFICANT, np.maximum(present, 1) - 127), counts[present])

    @classmethod
    def of_normal(cls, rms: float) -> "Grid":
        """At normal weights of this root mean square, as shares."""
        powers = np.arange(-60, 4)  # of two, below |w| / rms: the rest has no mass
        edges = np.ldexp(1.0, np.append(powers, 4) + int(np.floor(np.log2(rms)))) / rms
        mass = np.diff(erf(edges / np.sqrt(2)))
        return cls(edges[:-1] * rms * _SIGNIFICANT, mass / mass.sum())

    @property
    def size(self) -> float:
        """The number of entries."""
        return float(self.counts.sum())


@dataclass(frozen=True)
class Expected:
    """What files show of a normal update, each in expectation.

    Attributes:
        unchanged: share of entries that are equal.
        within: share of entries that changed by at most the tolerance that was asked for.
        kept: <D', D> / <D, D>, how much of the update D is in what files show, D'.
        noise: |D' - kept D|F^2 / |D|F^2, the rest.
    """

    unchanged: float
    within: float
    kept: float
    noise: float

    @property
    def norm(self) -> float:
        """|D'|F / |D|F."""
        return float(np.sqrt(self.kept**2 + self.noise))


def expected(grid: Grid, sigma: float, *, on_grid: bool, tolerance: float = 1e-5) -> Expected:
    """What rounding to bfloat16 makes of an update of independent normal entries.

    Args:
        grid: the spacings at the base's entries.
        sigma: standard deviation of an entry of the update, above 0.
        on_grid: whether the base lies on the grid before it moves.
        tolerance: of a change that still counts as none.
    """
    s, h = sigma / grid.spacings, grid.spacings
    share = grid.counts / grid.size
    steps = np.floor(tolerance / h * (1 + 1e-9))  # that are within the tolerance
    if on_grid:
        unchanged, within = _inside(0.5, s), _inside(steps + 0.5, s)
        kept, second = _rounded_moments(s)
    else:
        unchanged, within = _rest(1.0, s), _rest(steps + 1, s) - _rest(steps, s)
        kept, second = np.ones_like(s), s**2 + _dithered_noise(s)
    along = float((share * kept).sum())  # all entries have the same variance
    noise = float((share * second * h**2).sum()) / sigma**2 - along**2
    return Expected(float((share * unchanged).sum()), float((share * within).sum()), along, max(0.0, noise))


def share_through_noise(s1: float, norm: float, rows: int, cols: int, seen: Expected) -> float:
    """s1 / |D'|F that files show of an update whose own is s1 / |D|F: its leading triplet among isotropic noise.

    A triplet of theta = kept * s1 in noise of tau^2 an entry is seen at sqrt((theta^2 + m tau^2) (theta^2 + n tau^2)) /
    theta where theta^4 > m n tau^4, and below that not at all: the largest value is the noise's own, tau (sqrt(m) +
    sqrt(n)) (Benaych-Georges and Nadakuditi 2012, "The singular values and vectors of low rank perturbations of large
    rectangular random matrices"). NaN where D = 0.

    Args:
        s1: the update's largest singular value.
        norm: |D|F.
        rows, cols: of the matrix.
        seen: what rounding makes of it.
    """
    if norm == 0:
        return float("nan")
    theta, tau = seen.kept * s1, norm * float(np.sqrt(seen.noise / (rows * cols)))
    edge = tau * (np.sqrt(rows) + np.sqrt(cols))
    if theta**4 > rows * cols * tau**4:
        edge = np.sqrt((theta**2 + rows * tau**2) * (theta**2 + cols * tau**2)) / theta
    shown = norm * seen.norm
    return float(min(1.0, edge / shown)) if shown > 0 else float("nan")


def _inside(limit: Floats | float, s: Floats) -> Floats:
    """P(|x| <= limit), x ~ N(0, s^2)."""
    found: Floats = erf(limit / (s * np.sqrt(2)))
    return found


def _rest(limit: Floats | float, s: Floats) -> Floats:
    """E[(limit - |x|)+]."""
    mean = s * np.sqrt(2 / np.pi) * -np.expm1(-0.5 * (limit / s) ** 2)  # of |x| inside
    found: Floats = limit * _inside(limit, s) - mean
    return found


def _dithered_noise(s: Floats) -> Floats:
    """E[f (1 - f)], f the fractional part of |x|: a Fourier series, or E|x| - E[x^2] where no |x| reaches 1."""
    k = np.arange(1, 9)[:, None]
    waves = np.exp(-2 * (np.pi * k * np.maximum(s, _ALL_INSIDE)) ** 2) / (np.pi * k) ** 2  # (8, L)
    found: Floats = np.where(s < _ALL_INSIDE, s * np.sqrt(2 / np.pi) - s**2, 1 / 6 - waves.sum(axis=0))
    return found


def _rounded_moments(s: Floats) -> tuple[Floats, Floats]:
    """E[x round(x)] / s^2 and E[round(x)^2]: sums over the thresholds k - 1/2."""
    bounded = np.minimum(s, _FINE)
    limits = (np.arange(1, int(8 * _FINE) + 1) - 0.5)[:, None] / bounded  # (80, L)
    kept = 2 * np.exp(-0.5 * limits**2).sum(axis=0) / (bounded * np.sqrt(2 * np.pi))
    second = ((2 * np.arange(1, len(limits) + 1) - 1)[:, None] * erfc(limits / np.sqrt(2))).sum(axis=0)
    fine = s > _FINE
    return np.where(fine, 1.0, kept), np.where(fine, s**2 + 1 / 12, second)

"""Numbers that describe one update D: its size, how many directions it has, how much of the weight it leaves alone."""

import math

import torch
from torch import Tensor

PANEL_ENTRIES = 1 << 18  # 1 MiB of float32: it stays in a core's second-level cache


def frobenius(D: Tensor) -> float:
    """|D|F, summed in float64."""
    return float(torch.linalg.vector_norm(D, dtype=torch.float64))


def share_1(norm: float, s1: float) -> float:
    """s1 / |D|F: the leading direction's share of the norm. NaN where D = 0."""
    return s1 / norm if norm > 0 else math.nan


def stable_rank(norm: float, s1: float) -> float:
    """|D|F^2 / s1^2, between 1 and the rank. NaN where D = 0."""
    return (norm / s1) ** 2 if s1 > 0 else math.nan


def entropy_rank(spectrum: Tensor) -> float:
    """exp of the entropy of s_i / sum(s): the effective rank of Roy and Vetterli (2007). NaN where D = 0.

    Args:
        spectrum: all singular values, none left out.
    """
    s = spectrum.double()
    if float(s.sum()) == 0:
        return math.nan
    p = s / s.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def rounding_norm(W: Tensor, dtype: torch.dtype) -> float:
    """|E|F of what a cast of W to a 16-bit dtype rounds away, expected: spacing^2 / 12 for each entry.

    The spacing of the numbers around w = m 2^e, 1/2 <= |m| < 1, is eps 2^(e - 1), and no less than among subnormals.
    """
    numbers, squares = torch.finfo(dtype), 0.0
    for panel in torch.split(W.reshape(-1), PANEL_ENTRIES):
        # float32's exponent bits alone are the power of two below |w|.
        powers = (panel.to(torch.float32).view(torch.int32) & 0x7F800000).view(torch.float32)
        squares += frobenius(powers.clamp_(min=numbers.smallest_normal)) ** 2
    return numbers.eps * math.sqrt(squares / 12)


def sparsity_column(tolerance: float) -> str:
    """The table's column of a tolerance: sparsity_0, sparsity_1e-08, sparsity_2.5e-06."""
    if tolerance == 0:
        return "sparsity_0"
    mantissa, exponent = f"{tolerance:e}".split("e")
    return f"sparsity_{mantissa.rstrip('0').rstrip('.')}e{exponent}"

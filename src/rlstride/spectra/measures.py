"""Numbers that describe one update D: its size, how many directions it has, how much of the weight it leaves alone."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


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


def sparsity(D: Tensor, tolerances: Iterable[float]) -> list[float]:
    """For each tolerance the share of entries with |d| <= tolerance: inclusive, compared in D's own precision."""
    magnitude = D.abs()
    return [float((magnitude <= tolerance).sum()) / D.numel() for tolerance in tolerances]


def sparsity_column(tolerance: float) -> str:
    """The table's column of a tolerance: sparsity_0, sparsity_1e-08, sparsity_2.5e-06."""
    if tolerance == 0:
        return "sparsity_0"
    mantissa, exponent = f"{tolerance:e}".split("e")
    return f"sparsity_{mantissa.rstrip('0').rstrip('.')}e{exponent}"

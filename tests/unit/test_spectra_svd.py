"""Truncated SVDs against LAPACK's in float64: on matrices of every kind, by every method."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlstride.spectra.svd as svd_module
from rlstride.spectra.svd import (
    EXACT_SIDE,
    GRAM_SIDE,
    NEAR_TIE,
    RESIDUAL,
    TruncatedSVD,
    svd_of_product,
    truncated_svd,
)

VALUE_BAR, COSINE_BAR = 1e-4, 0.999
ROUNDING = 2e-6  # of s1: below it float32 tells no value from zero

seeds = st.integers(0, 2**32)
METHODS = {"exact": (2, EXACT_SIDE), "Gram": (EXACT_SIDE + 1, 200), "Krylov": (GRAM_SIDE + 1, GRAM_SIDE + 80)}


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """Each method's share is the same: it is chosen by the smaller side."""
    low, high = METHODS[draw(st.sampled_from(list(METHODS)))]
    short = draw(st.integers(low, high))
    long = short + draw(st.integers(0, 120))
    return (long, short) if draw(st.booleans()) else (short, long)


scales = st.sampled_from([1e-20, 1e-5, 1.0, 1e8])


def normal(m: int, n: int, seed: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(m: int, n: int, spectrum: Tensor, seed: int) -> Tensor:
    """A matrix (m, n) with these singular values (at most min(m, n)) and random directions."""
    r = len(spectrum)
    u, v = (torch.linalg.qr(normal(side, r, seed + i)).Q for i, side in enumerate((m, n)))
    return ((u * spectrum) @ v.mT).float()


def spectrum_of_an_update(r: int) -> Tensor:
    return torch.arange(1, r + 1, dtype=torch.float64) ** -0.33


@st.composite
def random(draw: st.DrawFn) -> Tensor:
    return (draw(scales) * normal(*draw(shapes()), draw(seeds))).float()


@st.composite
def updates(draw: st.DrawFn) -> Tensor:
    m, n = draw(shapes())
    return with_spectrum(m, n, 1e-2 * spectrum_of_an_update(min(m, n)), draw(seeds))


@st.composite
def low_rank(draw: st.DrawFn) -> Tensor:
    (m, n), rank, seed = draw(shapes()), draw(st.integers(1, 5)), draw(seeds)
    return (draw(scales) * normal(m, rank, seed) @ normal(rank, n, seed + 1)).float()


@st.composite
def sparse(draw: st.DrawFn) -> Tensor:
    (m, n), seed = draw(shapes()), draw(seeds)
    kept = torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < draw(st.sampled_from([1e-5, 1e-3, 0.05]))
    return (normal(m, n, seed) * kept).float()


@st.composite
def zero(draw: st.DrawFn) -> Tensor:
    return torch.zeros(draw(shapes()))


@st.composite
def tied(draw: st.DrawFn) -> Tensor:
    m, n = draw(shapes())
    r = min(m, n)
    spectrum = torch.ones(r, dtype=torch.float64)
    spectrum[draw(st.integers(1, r)) :] *= draw(st.floats(0.1, 0.9))
    return with_spectrum(m, n, spectrum, draw(seeds))


@st.composite
def tall_or_wide(draw: st.DrawFn) -> Tensor:
    D = normal(draw(st.integers(1000, 2000)), draw(st.integers(1, 200)), draw(seeds)).float()
    return D if draw(st.booleans()) else D.mT


@st.composite
def ill_conditioned(draw: st.DrawFn) -> Tensor:
    """s_r / s_1 = 1e-12, over all of the values or over the few that are not zero."""
    m, n = draw(shapes())
    r = draw(st.sampled_from([min(m, n), min(m, n, 12)]))
    return with_spectrum(m, n, torch.logspace(0, -12, r, dtype=torch.float64), draw(seeds))


@st.composite
def rounded_to_bf16(draw: st.DrawFn) -> Tensor:
    """The difference of two bf16 checkpoints: most entries did not move, the others by whole steps of the format."""
    (m, n), seed = draw(shapes()), draw(seeds)
    base = (0.02 * normal(m, n, seed)).bfloat16()
    moved = base.double() + with_spectrum(m, n, 5e-3 * spectrum_of_an_update(min(m, n)), seed + 1).double()
    return moved.bfloat16().float() - base.float()


@st.composite
def one_column(draw: st.DrawFn) -> Tensor:
    D = draw(scales) * normal(draw(st.integers(1, 700)), 1, draw(seeds)).float()
    return D if draw(st.booleans()) else D.mT


KINDS = {
    strategy.__name__: strategy
    for strategy in (
        random,
        updates,
        low_rank,
        sparse,
        zero,
        tied,
        tall_or_wide,
        ill_conditioned,
        rounded_to_bf16,
        one_column,
    )
}


def assert_meets_the_bar(D: Tensor, found: TruncatedSVD, k: int) -> None:
    D = D.double()
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    k, noise = min(k, *D.shape), ROUNDING * float(S[0])
    u, s, v = (part.double() for part in (found.u, found.s, found.v))
    assert (u.shape, s.shape, v.shape) == ((len(D), k), (k,), (D.shape[1], k))
    assert bool((s[:-1] >= s[1:]).all())
    for vectors in (u, v):
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(s, S[:k], rtol=VALUE_BAR, atol=noise)

    right, left = (torch.linalg.vector_norm(r, dim=0) for r in (D @ v - u * s, D.mT @ u - v * s))
    torch.testing.assert_close(found.residuals.double(), torch.maximum(right, left), rtol=0.01, atol=noise)
    assert bool((found.residuals <= RESIDUAL * s + noise).all())

    following = torch.cat([S[1 : k + 1], S.new_zeros(k + 1 - len(S[: k + 1]))])
    resolved = following > 10 * noise
    assert bool(found.near_ties[resolved & (S[:k] < (NEAR_TIE - 0.01) * following)].all())
    assert not bool(found.near_ties[S[:k] > (NEAR_TIE + 0.01) * following].any())

    apart = S[:k] > NEAR_TIE * following
    apart[1:] &= S[: k - 1] > NEAR_TIE * S[1:k]
    for i in torch.nonzero(apart & (S[:k] > 100 * noise)).flatten().tolist():
        assert abs(float(u[:, i] @ U[:, i])) > COSINE_BAR
        assert abs(float(v[:, i] @ Vh[i])) > COSINE_BAR


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(data=st.data(), k=st.integers(1, 8))
def test_triplets_residuals_and_near_ties_are_those_of_lapack(kind: str, data: st.DataObject, k: int) -> None:
    D = data.draw(KINDS[kind]().map(Described)).matrix
    assert_meets_the_bar(D, truncated_svd(D, k), k)


class Described:
    """A drawn matrix, which a failing example shows by its shape."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __repr__(self) -> str:
        return f"{tuple(self.matrix.shape)}, |D|F {float(self.matrix.double().norm()):.3g}"


@pytest.mark.parametrize("shape", [(600, 700), (700, 600), (600, 600)])
@pytest.mark.parametrize("turned", [0.0, 0.1, 1.0])
def test_a_warm_start_meets_the_same_bar_however_far_the_matrix_moved(shape: tuple[int, int], turned: float) -> None:
    before, after = (with_spectrum(*shape, spectrum_of_an_update(600), seed) for seed in (0, 10))
    after = (1 - turned) * before + turned * after
    start = truncated_svd(before, 8)
    assert_meets_the_bar(after, truncated_svd(after, 8, start), 8)


def test_a_start_without_directions_does_no_harm() -> None:
    D = with_spectrum(600, 650, spectrum_of_an_update(600), 0)
    for start in (torch.zeros(600, 650), with_spectrum(600, 650, torch.ones(1), 3)):
        assert_meets_the_bar(D, truncated_svd(D, 8, truncated_svd(start, 3)), 8)


def test_a_start_misses_no_direction_that_it_has_no_part_in() -> None:
    """A new leading direction at right angles to all of the previous step's."""
    u, v = (torch.linalg.qr(normal(side, 12, side)).Q for side in (600, 650))
    spectrum = torch.logspace(0, -1, 12, dtype=torch.float64)
    old = ((u[:, 1:] * spectrum[1:]) @ v[:, 1:].mT).float()
    new = ((u * spectrum) @ v.mT).float()
    assert_meets_the_bar(new, truncated_svd(new, 4, truncated_svd(old, 4)), 4)


@pytest.mark.parametrize(("side", "whole"), [(40, True), (200, True), (600, False)])
def test_smaller_matrices_come_with_their_whole_spectrum(side: int, whole: bool) -> None:
    D = normal(side, 2 * side, 0).float()
    spectrum = truncated_svd(D, 2).spectrum
    assert (spectrum is not None) is whole
    if spectrum is not None:
        torch.testing.assert_close(spectrum, torch.linalg.svdvals(D), rtol=1e-4, atol=0)


def test_float64_stays_float64_to_its_own_precision() -> None:
    for side in (40, 300):
        D = normal(side, 2 * side, 0)
        found = truncated_svd(D, 3)
        assert found.s.dtype == torch.float64
        torch.testing.assert_close(found.s, torch.linalg.svdvals(D)[:3], rtol=1e-12, atol=0)


def test_the_same_matrix_gives_the_same_bits() -> None:
    D = normal(700, 600, 0).float()
    first, second = truncated_svd(D, 8), truncated_svd(D, 8)
    assert torch.equal(first.u, second.u)
    assert torch.equal(first.s, second.s)
    assert torch.equal(first.v, second.v)


@pytest.mark.parametrize("r", [1, 3, 12])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_product_is_decomposed_through_its_factors(r: int, k: int) -> None:
    left, right = normal(30, r, 0).float(), normal(r, 10, 1).float()
    found = svd_of_product(left, right, k)
    assert_meets_the_bar(left.double() @ right.double(), found, k)
    assert float(found.residuals.max()) < 1e-5 * float(found.s[0])


def test_a_product_of_zero_has_no_direction() -> None:
    found = svd_of_product(torch.zeros(30, 4), normal(4, 20, 0).float(), 6)
    assert not bool(found.s.any())
    torch.testing.assert_close(found.u.mT @ found.u, torch.eye(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_a_start_misses_no_new_direction_of_any_rank(rank: int) -> None:
    """At right angles to all that the start has, just above the value that is at this rank."""
    D = with_spectrum(600, 620, spectrum_of_an_update(600), 0)
    U, S, Vh = torch.linalg.svd(D)
    start = truncated_svd(D, 8)
    for seed in range(5):
        u, v = normal(600, 1, seed).float(), normal(620, 1, seed + 50).float()
        u, v = u - U[:, :20] @ (U[:, :20].mT @ u), v - Vh[:20].mT @ (Vh[:20] @ v)
        new = D + 1.02 * S[rank - 1] * (u / u.norm()) @ (v / v.norm()).mT
        assert_meets_the_bar(new, truncated_svd(new, 8, start), 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
@pytest.mark.parametrize("decay", [0.1, 0.33, 1.0, 3.0])
def test_the_bar_is_met_with_and_without_products_in_bfloat16(
    decay: float, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svd_module, "_fast_dtype", lambda A: dtype)
    spectrum = torch.arange(1, 601, dtype=torch.float64) ** -decay
    D = with_spectrum(700, 600, 1e-3 * spectrum, 0)
    base = 0.02 * normal(700, 600, 5)
    cast = (base + D.double()).bfloat16().float() - base.bfloat16().float()
    for matrix in (D, D.mT, cast):
        assert_meets_the_bar(matrix, truncated_svd(matrix, 8), 8)


@pytest.mark.parametrize("below", [1e-2, 1e-4, 3e-5])
def test_values_far_below_the_first_are_as_good_as_lapacks(below: float) -> None:
    spectrum = below / torch.arange(1, 301, dtype=torch.float64)
    spectrum[0] = 1
    D = with_spectrum(320, 300, spectrum, 0)
    found, exact = truncated_svd(D, 8), torch.linalg.svdvals(D.double())[:8]
    lapacks_error = float((torch.linalg.svdvals(D)[:8].double() / exact - 1).abs().max())
    torch.testing.assert_close(found.s.double(), exact, rtol=1e-4 + 2 * lapacks_error, atol=0)


@pytest.mark.parametrize("entry", [1e-40, 1e-36, 1e36])
def test_a_single_entry_is_found_at_any_scale(entry: float) -> None:
    D = torch.zeros(400, 300)
    D[7, 11] = entry
    found = truncated_svd(D, 2)
    assert float(found.s[0]) == pytest.approx(entry, rel=1e-3)
    assert (int(found.u[:, 0].abs().argmax()), int(found.v[:, 0].abs().argmax())) == (7, 11)

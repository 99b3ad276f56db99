import math

import pytest
import torch

from rlstride.spectra.measures import entropy_rank, frobenius, share_1, sparsity, sparsity_column, stable_rank
from rlstride.spectra.scope import describe_tensor
from rlstride.spectra.svd import truncated_svd
from rlstride.spectra.updates import aligned_signs


@pytest.mark.parametrize(
    ("name", "shape", "layer", "kind", "in_scope"),
    [
        ("model.layers.11.self_attn.q_proj.weight", (8, 8), 11, "q_proj", True),
        ("model.layers.0.mlp.down_proj.weight", (8, 24), 0, "down_proj", True),
        ("model.layers.0.self_attn.q_norm.weight", (8,), 0, "q_norm", False),
        ("model.layers.0.self_attn.q_proj.bias", (8,), 0, "q_proj.bias", False),
        ("model.embed_tokens.weight", (20, 8), -1, "embed_tokens", False),
        ("lm_head.weight", (20, 8), -1, "lm_head", False),
        ("model.norm.weight", (8,), -1, "norm", False),
    ],
)
def test_scope_is_the_2d_weights_inside_the_layers(
    name: str, shape: tuple[int, ...], layer: int, kind: str, in_scope: bool
) -> None:
    weight = describe_tensor(name, shape)
    assert (weight.layer, weight.kind, weight.in_scope) == (layer, kind, in_scope)


def test_sparsity_of_no_change_is_one() -> None:
    assert sparsity(torch.zeros(3, 4), [0.0, 1e-5]) == [1.0, 1.0]


@pytest.mark.parametrize("tolerance", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4])
def test_sparsity_includes_a_change_of_just_the_tolerance(tolerance: float) -> None:
    d = torch.tensor([tolerance, -tolerance, 2 * tolerance, 0.0])  # as fp32 holds the tolerance
    assert sparsity(d, [tolerance]) == [0.75]


def test_sparsity_rises_with_the_tolerance() -> None:
    shares = sparsity(1e-6 * torch.randn(50, 50, generator=torch.Generator().manual_seed(0)), [0, 1e-8, 1e-7, 1e-6, 1])
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("tolerance", "column"),
    [(0, "sparsity_0"), (1e-8, "sparsity_1e-08"), (1e-4, "sparsity_1e-04"), (2.5e-6, "sparsity_2.5e-06")],
)
def test_a_tolerance_names_its_column(tolerance: float, column: str) -> None:
    assert sparsity_column(tolerance) == column
    assert float(column.removeprefix("sparsity_")) == tolerance


def test_ranks_of_known_spectra() -> None:
    assert stable_rank(5.0, 4.0) == pytest.approx(25 / 16)  # s = (4, 3)
    assert share_1(5.0, 4.0) == pytest.approx(0.8)
    assert entropy_rank(torch.ones(7)) == pytest.approx(7)
    assert entropy_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert entropy_rank(torch.tensor([1.0, 3.0])) == pytest.approx(4 / 3**0.75)  # exp(ln 4 - 3/4 ln 3)


def test_no_update_has_no_direction_and_no_rank() -> None:
    assert all(map(math.isnan, (share_1(0.0, 0.0), stable_rank(0.0, 0.0), entropy_rank(torch.zeros(3)))))


def test_the_norm_is_summed_in_float64() -> None:
    # Squares of 1e-30 vanish in float32.
    assert frobenius(torch.full((100, 100), 1e-30)) == pytest.approx(1e-28, rel=1e-6)


def random(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


MATRICES = {
    "random": random(20, 20),
    "tall": random(50, 4),
    "wide": random(4, 50),
    "low-rank": random(30, 2) @ random(2, 40, seed=1),
    "one column": random(20, 1),
    "one row": random(1, 20),
    "tied": torch.eye(6),
    "zero": torch.zeros(5, 8),
    "large low-rank": random(600, 2) @ random(2, 650, seed=1),
    "large random": random(560, 570),
    "large tied": torch.eye(600),
    "large zero": torch.zeros(600, 650),
}


@pytest.mark.parametrize("name", MATRICES)
def test_truncated_svd_has_the_singular_values_and_orthonormal_vectors(name: str) -> None:
    D, k = MATRICES[name], 3
    found = truncated_svd(D, k)
    kept = min(k, *D.shape)
    assert found.u.shape == (D.shape[0], kept)
    assert found.v.shape == (D.shape[1], kept)
    S = torch.linalg.svdvals(D)[:kept]
    torch.testing.assert_close(found.s, S, rtol=1e-4, atol=1e-5 * float(S[0]))
    for vectors in (found.u, found.v):
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(kept), rtol=0, atol=1e-4)
    # D v = s u and D^T u = s v: holds for ties too, whose vectors are not unique.
    scale = max(float(S[0]), 1.0)
    torch.testing.assert_close(D @ found.v, found.u * found.s, rtol=0, atol=2e-4 * scale)
    torch.testing.assert_close(D.mT @ found.u, found.v * found.s, rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize(
    ("name", "near_tie"),
    [("tied", True), ("zero", False), ("one column", False), ("large tied", True), ("large zero", False)],
)
def test_only_a_second_direction_of_like_strength_is_a_near_tie(name: str, near_tie: bool) -> None:
    assert truncated_svd(MATRICES[name], 1).near_tie is near_tie


def test_signs_are_chained_from_the_last_step() -> None:
    """A direction that turns by 60 degrees a step: the first is opposite to the last, yet no step needs a flip."""
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 120.0, 180.0]))
    u = torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None]  # (4, 2, 1)
    s = torch.ones(4, 1)
    assert aligned_signs(u, s).flatten().tolist() == [1, 1, 1, 1]
    turned = u.clone()
    turned[1] *= -1
    assert aligned_signs(turned, s).flatten().tolist() == [1, -1, 1, 1]


def test_a_step_without_an_update_takes_no_part_in_the_chain_of_signs() -> None:
    # Through the middle one, the first would be turned away from the last.
    u = torch.tensor([[0.8, 0.6], [-0.1, 0.99], [1.0, 0.0]])[:, :, None]
    s = torch.tensor([[1.0], [0.0], [1.0]])
    assert aligned_signs(u, s)[0] == 1

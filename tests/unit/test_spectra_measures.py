import math

import pytest
import torch

from rlstride.spectra.gaussian import gaussian_share
from rlstride.spectra.measures import (
    entropy_rank,
    frobenius,
    rounding_norm,
    share_1,
    sparsity_column,
    stable_rank,
)
from rlstride.spectra.sparsity import Sparsity
from rlstride.spectra.updates import aligned_signs
from rlstride.trajectory.layout import Layout
from rlstride.trajectory.scope import describe_tensor


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
    weight = describe_tensor(name, Layout({}).place(name, shape))  # of a model that transformers does not know
    assert (weight.layer, weight.kind, weight.in_scope) == (layer, kind, in_scope)


def sparsity(D: torch.Tensor, tolerances: list[float]) -> list[float]:
    entries = Sparsity(tolerances)
    for panel in D.split(3):
        entries.add(panel)
    return entries.sparsities


def test_sparsity_of_no_change_is_one() -> None:
    assert sparsity(torch.zeros(3, 4), [0.0, 1e-5]) == [1.0, 1.0]


def test_entries_of_all_panels_count_and_not_a_number_stays() -> None:
    D = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    entries = Sparsity([0.5, 100.0])
    for panel in D.split(4):
        entries.add(panel)
    assert entries.frobenius == pytest.approx(float(D.double().norm()), rel=1e-12)
    assert entries.largest == float(D.abs().max())
    assert entries.sparsities == [float((D.abs() <= 0.5).double().mean()), 1.0]
    assert entries.finite
    entries.add(torch.tensor([math.nan, 1.0]))
    entries.add(torch.tensor([5.0]))
    assert math.isnan(entries.largest)
    assert not entries.finite


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 0.02, 3.0])
def test_the_floor_of_a_dtype_is_what_a_cast_rounds_away(dtype: torch.dtype, scale: float) -> None:
    W = scale * torch.randn(300, 500, generator=torch.Generator().manual_seed(0))
    E = W.to(dtype).float() - W
    assert rounding_norm(W, dtype) == pytest.approx(frobenius(E), rel=0.02)
    assert gaussian_share(300, 500) == pytest.approx(share_1(frobenius(E), float(torch.linalg.svdvals(E)[0])), rel=0.05)


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

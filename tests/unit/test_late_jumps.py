"""experiments/late_jumps.py: the points that it tries, and how it chooses among them."""

import numpy as np
import pytest
import torch

from scripts import script

late_jumps = script("experiments", "late_jumps")


def test_anderson_mixing_of_three_movements_ends_at_the_fixed_point_of_a_linear_map_of_the_plane():
    A, b = torch.tensor([[0.5, 0.2], [0.1, 0.8]]), torch.tensor([1.0, -1.0])
    kept = [torch.tensor([3.0, 4.0])]
    for _ in range(3):
        kept.append(A @ kept[-1] + b)
    fixed = torch.linalg.solve(torch.eye(2) - A, b)
    found = late_jumps.anderson([{"x": x[:1], "y": x[1:]} for x in kept])
    assert torch.cat([found["x"], found["y"]]) == pytest.approx(fixed, abs=1e-4)


def test_along_a_straight_way_a_factor_of_one_is_one_movement():
    name = "model.layers.0.mlp.up_proj.weight"
    kept = [{name: torch.full((2, 2), float(i))} for i in range(8)]
    ahead = {line: point(1.0)[name][0, 0] for line, point in late_jumps.lines(kept).items()}
    assert ahead["full"] == ahead["rank_1"] == pytest.approx(8)
    assert ahead["momentum"] == pytest.approx(8)  # the average of equal movements
    assert ahead["mean"] == 6  # of 5, 6 and 7
    assert ahead["mean_full"] == ahead["mean_rank_1"] == pytest.approx(9)  # 6, and the 3 that lie between the means
    assert ahead["anderson_2"] == pytest.approx(7)  # equal movements say nothing: it stays


def test_the_factor_of_one_half_of_the_problems_is_paid_out_on_the_other():
    # Even problems like the factor 1, odd ones the factor 2; each half has to live with the other's choice.
    gains = {1.0: np.array([0.5, -0.3, 0.5, -0.3]), 2.0: np.array([-0.1, 0.4, -0.1, 0.4])}
    assert late_jumps.of_line(gains)["gain"] == pytest.approx((-0.3 + -0.1) / 2)
    assert late_jumps.of_line(gains)["best"] == pytest.approx(0.15)


def test_where_every_factor_loses_the_run_stays():
    assert late_jumps.of_line({1.0: np.array([-0.5, -0.3])}) == {"gain": 0.0, "best": 0.0}


def test_kinds_that_lose_alone_stay_where_they_are():
    W = {
        f"model.layers.{i}.{name}.weight": torch.zeros(2)
        for i in (0, 1)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    D = {name: torch.ones(2) for name in W}

    def gains(made):
        q = sum(float(tensor.sum()) for name, tensor in made.items() if late_jumps.kind(name) == "q_proj")
        up = sum(float(tensor.sum()) for name, tensor in made.items() if late_jumps.kind(name) == "up_proj")
        return np.full(4, 0.01 * q - 0.02 * up)

    # q_proj alone, factor 3
    assert late_jumps.by_kind(W, D, gains) == {"gain": pytest.approx(0.12), "best": pytest.approx(0.12)}

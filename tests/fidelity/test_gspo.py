"""GSPO as Group Sequence Policy Optimization (arXiv 2507.18071) states it."""

from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.algorithms import GSPO
from rlstride.training.gspo import build

LOW, HIGH = 0.05, 0.08


def trainer_of(root: Path) -> tuple[Any, Path]:
    algorithm = GSPO(trainer="gspo", learning_rate=1e-4, epsilon=LOW, epsilon_high=HIGH, minibatches=1, epochs=2)
    run = fixed.run_of(algorithm, root)
    return build(run), run.base_folder


def test_advantages_are_rewards_normalised_within_their_group(tmp_path: Path) -> None:
    """Eq. 6: (r_i - mean(r)) / std(r). Rewards 1 0 0 0: mean 1/4, std 1/2; 1 1 1 0: mean 3/4, std 1/2."""
    trainer, base = trainer_of(tmp_path)
    advantages = fixed.by_rollout(fixed.collect(trainer, base), base, "advantages")
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5], abs=1e-3)


def test_loss_and_gradient_are_those_of_equations_5_and_7(tmp_path: Path) -> None:
    """Eq. 7: s_i = (pi(y_i|x) / pi_old(y_i|x)) ** (1 / |y_i|); eq. 5: mean_i min(s_i A_i, clip(s_i) A_i)."""
    trainer, base = trainer_of(tmp_path)
    batch, old, _ = fixed.off_policy(trainer, base, scale=0.03)
    advantages = fixed.by_rollout(batch, base, "advantages").tolist()
    ratios = []

    def formula(policy: PreTrainedModel) -> Tensor:
        new = fixed.token_logps(policy, base)
        ratios.extend([(n.sum() - o.sum()).exp() ** (1 / len(n)) for n, o in zip(new, old, strict=True)])
        terms = [fixed.clipped_objective(r, a, LOW, HIGH) for r, a in zip(ratios, advantages, strict=True)]
        return -torch.stack(terms).mean()

    loss = trainer.compute_loss(trainer.model, batch)
    fixed.assert_same_loss_and_gradient(trainer, loss, base, formula)
    clipped = fixed.share_clipped([ratio.detach() for ratio in ratios], advantages, LOW, HIGH)
    assert 0 < clipped < 1
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [pytest.approx(clipped)]


def test_a_step_makes_several_updates_so_that_the_clip_matters() -> None:
    assert GSPO(trainer="gspo", learning_rate=1e-4).updates_per_step > 1

"""RLOO as Back to Basics (arXiv 2402.14740) states it."""

from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.algorithms import RLOO
from rlstride.training.rloo import build

BETA = 0.05


def trainer_of(root: Path, beta: float) -> tuple[Any, Path]:
    run = fixed.run_of(RLOO(trainer="rloo", learning_rate=1e-4, beta=beta, epsilon=0.2, epochs=2), root)
    return build(run), run.base_folder


def test_the_baseline_is_the_mean_reward_of_the_others(tmp_path: Path) -> None:
    """Section 3.2: A_i = r_i - mean of the others. 1 0 0 0: 1 - 0, 0 - 1/3; 1 1 1 0: 1 - 2/3, 0 - 1."""
    trainer, base = trainer_of(tmp_path, beta=0.0)
    advantages = fixed.by_rollout(fixed.collect(trainer, base), base, "advantages")
    assert advantages.tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1 / 3, -1])


def test_the_kl_to_the_base_is_part_of_the_reward(tmp_path: Path) -> None:
    """Eq. 3: R(x, y) = r(x, y) - beta log(pi(y|x) / pi_ref(y|x)), of whole completions."""
    trainer, base = trainer_of(tmp_path, beta=BETA)
    batch, old, reference = fixed.off_policy(trainer, base, scale=0.0)
    log_ratios = [(new - ref).sum() for new, ref in zip(old, reference, strict=True)]
    rewards = (torch.tensor(fixed.REWARDS).flatten() - BETA * torch.stack(log_ratios)).view(-1, fixed.GROUP)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (fixed.GROUP - 1)
    advantages = fixed.by_rollout(batch, base, "advantages")
    torch.testing.assert_close(advantages, (rewards - others).flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.01])
def test_loss_and_gradient_are_those_of_the_clipped_leave_one_out_estimator(tmp_path: Path, scale: float) -> None:
    """Section 3.2 on-policy (scale 0), where the gradient is mean A_i grad log pi(y_i|x); off-policy, as the paper's
    PPO comparison does, the ratio of whole completions under PPO's clip (arXiv 1707.06347, eq. 7)."""
    trainer, base = trainer_of(tmp_path, beta=BETA)
    batch, old, _ = fixed.off_policy(trainer, base, scale)
    advantages = fixed.by_rollout(batch, base, "advantages").tolist()
    ratios = []

    def formula(policy: PreTrainedModel) -> Tensor:
        new = fixed.token_logps(policy, base)
        ratios.extend([(logps.sum() - old_logps.sum()).exp() for logps, old_logps in zip(new, old, strict=True)])
        if scale == 0:
            terms = [logps.sum() * advantage for logps, advantage in zip(new, advantages, strict=True)]
            value = sum(advantages) / len(advantages)  # a ratio of 1 leaves the mean advantage as the objective
            mean = torch.stack(terms).mean()
            return -(value + mean - mean.detach())
        terms = [fixed.clipped_objective(r, a, 0.2, 0.2) for r, a in zip(ratios, advantages, strict=True)]
        return -torch.stack(terms).mean()

    loss = trainer.compute_loss(trainer.model, batch)
    fixed.assert_same_loss_and_gradient(trainer, loss, base, formula)
    clipped = fixed.share_clipped([ratio.detach() for ratio in ratios], advantages, 0.2, 0.2)
    assert clipped == 0 if scale == 0 else 0 < clipped < 1

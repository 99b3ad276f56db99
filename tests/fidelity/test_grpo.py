"""GRPO as DeepSeekMath (arXiv 2402.03300) states it."""

from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.algorithms import GRPO
from rlstride.training.grpo import build

BETA = 0.05


def trainer_of(root: Path) -> tuple[Any, Path]:
    run = fixed.run_of(GRPO(trainer="grpo", learning_rate=1e-4, beta=BETA, epsilon=0.2, epochs=2), root)
    return build(run), run.base_folder


def test_advantages_are_rewards_normalised_within_their_group(tmp_path: Path) -> None:
    """Section 4.1.2: A_i = (r_i - mean(r)) / std(r). Rewards 1 0 0 0: mean 1/4, std 1/2; 1 1 1 0: mean 3/4, std 1/2."""
    trainer, base = trainer_of(tmp_path)
    advantages = fixed.by_rollout(fixed.collect(trainer, base), base, "advantages")
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5], abs=1e-3)


def test_loss_and_gradient_are_those_of_equations_3_and_4(tmp_path: Path) -> None:
    """Eq. 3: the clipped ratio, averaged over each output's tokens, then over outputs; eq. 4: KL = r - log r - 1."""
    trainer, base = trainer_of(tmp_path)
    batch, old, reference = fixed.off_policy(trainer, base, scale=0.03)
    advantages = fixed.by_rollout(batch, base, "advantages").tolist()
    clipped = []

    def formula(policy: PreTrainedModel) -> Tensor:
        objectives = []
        new = fixed.token_logps(policy, base)
        for logps, old_logps, reference_logps, advantage in zip(new, old, reference, advantages, strict=True):
            ratio = (logps - old_logps).exp()
            to_reference = reference_logps - logps
            kl = to_reference.exp() - to_reference - 1
            objectives.append((fixed.clipped_objective(ratio, advantage, 0.2, 0.2) - BETA * kl).mean())
            clipped.append(ratio.detach())
        return -torch.stack(objectives).mean()

    loss = trainer.compute_loss(trainer.model, batch)
    fixed.assert_same_loss_and_gradient(trainer, loss, base, formula)
    assert 0.05 < fixed.share_clipped(clipped, advantages, 0.2, 0.2) < 0.95

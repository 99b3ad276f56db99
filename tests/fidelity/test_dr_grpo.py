"""Dr.GRPO as Understanding R1-Zero-Like Training (arXiv 2503.20783) states it."""

from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.algorithms import DrGRPO
from rlstride.training.dr_grpo import build


def trainer_of(root: Path) -> tuple[Any, Path]:
    run = fixed.run_of(DrGRPO(trainer="dr_grpo", learning_rate=1e-4, epsilon=0.2, epochs=2), root)
    return build(run), run.base_folder


def test_advantages_are_centred_and_not_divided(tmp_path: Path) -> None:
    """Section 3.2: A_i = r_i - mean(r). Rewards 1 0 0 0 have mean 1/4, and 1 1 1 0 have mean 3/4."""
    trainer, base = trainer_of(tmp_path)
    advantages = fixed.by_rollout(fixed.collect(trainer, base), base, "advantages")
    assert advantages.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75])


def test_loss_and_gradient_are_sums_over_tokens_divided_by_a_constant(tmp_path: Path) -> None:
    """Section 3.2: sum_i sum_t min(...) without 1/|o_i|; listing 1 divides by outputs times the generation budget."""
    trainer, base = trainer_of(tmp_path)
    batch, old, _ = fixed.off_policy(trainer, base, scale=0.03)
    advantages = fixed.by_rollout(batch, base, "advantages").tolist()
    ratios = []

    def formula(policy: PreTrainedModel) -> Tensor:
        new = fixed.token_logps(policy, base)
        ratios.extend([(logps - old_logps).exp() for logps, old_logps in zip(new, old, strict=True)])
        sums = [fixed.clipped_objective(r, a, 0.2, 0.2).sum() for r, a in zip(ratios, advantages, strict=True)]
        return -torch.stack(sums).sum() / (len(sums) * fixed.TASK.max_completion_tokens)

    loss = trainer.compute_loss(trainer.model, batch)
    fixed.assert_same_loss_and_gradient(trainer, loss, base, formula)
    assert 0.05 < fixed.share_clipped([ratio.detach() for ratio in ratios], advantages, 0.2, 0.2) < 0.95

"""What PPO and REINFORCE++ share: a reward and an advantage for every token of a rollout, on top of TRL's GRPO loop.

TRL draws the rollouts, shuffles and splits them, and takes the clipped loss of per-token advantages (B, T); here they
get another source than the group. ``B`` is the rollouts of this process, ``T`` the tokens of its longest completion.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOTrainer

from rlstride.rollouts import Rollouts, token_logps, total_rewards


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """The score on a completion's last token, and a penalty on every token (arXiv 2501.03262, token-level KL penalty).

    Args:
        scores: of the completions, (B,).
        penalties: what every token pays, (B, T).
        mask: 1 on a completion's tokens, 0 on padding, (B, T).

    Returns:
        (B, T), 0 on padding.
    """
    rewards = -penalties * mask  # (B, T)
    last = mask.sum(dim=1).long() - 1  # (B,)
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def token_mean(values: Tensor, mask: Tensor, accelerator: Accelerator) -> Tensor:
    """The mean of (B, T) over the unmasked tokens of all processes; a scalar without a gradient."""
    totals = torch.stack([(values * mask).sum(), mask.sum().to(values.dtype)]).detach()  # (2,)
    total, count = accelerator.reduce(totals, reduction="sum")
    mean: Tensor = total / count
    return mean


def normalise(values: Tensor, mask: Tensor, accelerator: Accelerator) -> Tensor:
    """Mean 0 and variance 1 over the unmasked tokens of all processes; (B, T), 0 on padding."""
    centred = (values - token_mean(values, mask, accelerator)) * mask  # (B, T)
    variance = token_mean(centred.square(), mask, accelerator)
    return centred * torch.rsqrt(variance + 1e-8)


class TokenAdvantageTrainer(GRPOTrainer):
    """TRL's GRPO loop with the KL to the base (k1, beta) in a reward for every token, and advantages made from it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # TRL has loaded the frozen reference; without a beta, it does not add its KL to the loss as well.
        self.kl_weight: float = self.args.beta
        self.beta = 0.0

    def score_tokens(self, rollouts: Rollouts, rewards: Tensor, mask: Tensor) -> Rollouts:
        """What is made from the rewards (B, T): ``advantages`` (B, T), and what else the loss needs, (B, ...)."""
        raise NotImplementedError

    def _calculate_rewards(self, inputs: Any, prompts: list[Any], *rest: Any) -> Tensor:
        per_function: Tensor = super()._calculate_rewards(inputs, prompts, *rest)  # (processes * B, functions)
        scores = total_rewards(self, per_function)
        start = self.accelerator.process_index * len(prompts)
        self._scores = scores[start : start + len(prompts)]  # (B,)
        return per_function

    def _generate_and_score_completions(self, inputs: Any) -> Rollouts:
        rollouts: Rollouts = super()._generate_and_score_completions(inputs)
        mask = rollouts["completion_mask"]
        penalties = torch.zeros_like(mask, dtype=torch.float32)
        if self.kl_weight:
            penalties = self.kl_weight * self._log_ratio_to_base(rollouts)
        rollouts |= self.score_tokens(rollouts, token_rewards(self._scores, penalties, mask), mask)
        return rollouts

    def _log_ratio_to_base(self, rollouts: Rollouts) -> Tensor:
        """log pi_old - log pi_ref of every sampled token: the k1 estimate of the KL, (B, T)."""
        policy = rollouts.get("old_per_token_logps")
        if policy is None:  # TRL leaves it out where a batch makes only one update
            policy = token_logps(self, self.model, rollouts)
        ratio = policy - self._reference_logps(rollouts)
        self._metrics["train"]["kl"].append(token_mean(ratio, rollouts["completion_mask"], self.accelerator).item())
        return ratio

    def _reference_logps(self, rollouts: Rollouts) -> Tensor:
        if self.ref_model is not None:
            return token_logps(self, self.ref_model, rollouts)
        with self.accelerator.unwrap_model(self.model).disable_adapter():  # the base is the model without its adapter
            return token_logps(self, self.model, rollouts)

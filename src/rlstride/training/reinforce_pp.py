"""REINFORCE++ (arXiv 2501.03262): PPO's clipped loss without a value model, advantages normalised over the batch."""

from torch import Tensor
from transformers import Trainer
from trl import GRPOConfig

from rlstride.config.algorithms import ReinforcePP
from rlstride.rollouts import Rollouts
from rlstride.training.run import Run, policy_arguments, reward_functions, rollout_arguments
from rlstride.training.token_advantages import TokenAdvantageTrainer, normalise


def build(run: Run[ReinforcePP]) -> Trainer:
    """Undiscounted returns of the token-level rewards, normalised over all tokens of the batch; token-mean loss."""
    return ReinforcePPTrainer(
        **policy_arguments(run),
        reward_funcs=reward_functions(run),
        args=GRPOConfig(**rollout_arguments(run), beta=run.algorithm.beta, loss_type="dapo"),
    )


def returns_to_go(rewards: Tensor) -> Tensor:
    """What is still to come at every token, undiscounted; (B, T), from rewards (B, T) that are 0 on padding."""
    return rewards.flip(1).cumsum(dim=1).flip(1)


class ReinforcePPTrainer(TokenAdvantageTrainer):
    """No group baseline: a token's advantage is its normalised return to go."""

    def score_tokens(self, rollouts: Rollouts, rewards: Tensor, mask: Tensor) -> Rollouts:
        """A_t = r(x, y) - beta sum_{i >= t} KL(i), less its mean and over its deviation among the batch's tokens."""
        return {"advantages": normalise(returns_to_go(rewards), mask, self.accelerator)}

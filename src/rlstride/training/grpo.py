"""GRPO (DeepSeekMath, arXiv 2402.03300, eq. 3 and 4) as TRL expresses it."""

from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from rlstride.config.algorithms import GRPO
from rlstride.training.run import Run, policy_arguments, reward_functions, rollout_arguments


def build(run: Run[GRPO]) -> Trainer:
    """Group-normalised advantages, the clipped ratio averaged over each completion, the k3 estimate of the KL."""
    return GRPOTrainer(
        **policy_arguments(run),
        reward_funcs=reward_functions(run),
        args=GRPOConfig(
            **rollout_arguments(run),
            beta=run.algorithm.beta,
            loss_type="grpo",
            scale_rewards="group",
            use_bias_correction_kl=False,  # a later idea, TRL's default: eq. 4 has no importance ratio in the KL
        ),
    )

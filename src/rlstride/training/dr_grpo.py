"""Dr.GRPO (Understanding R1-Zero-Like Training, arXiv 2503.20783, section 3.2) as TRL expresses it."""

from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from rlstride.config.algorithms import DrGRPO
from rlstride.training.run import Run, policy_arguments, reward_functions, rollout_arguments


def build(run: Run[DrGRPO]) -> Trainer:
    """Rewards minus their group's mean, undivided; the loss is summed over tokens and divided by a constant."""
    return GRPOTrainer(
        **policy_arguments(run),
        reward_funcs=reward_functions(run),
        args=GRPOConfig(**rollout_arguments(run), beta=0.0, loss_type="dr_grpo", scale_rewards="none"),
    )

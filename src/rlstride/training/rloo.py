"""RLOO (Back to Basics, arXiv 2402.14740, eq. 6 to 8) as TRL expresses it."""

from transformers import Trainer
from trl import RLOOConfig, RLOOTrainer

from rlstride.config.algorithms import RLOO
from rlstride.training.run import Run, policy_arguments, reward_functions, rollout_arguments


def build(run: Run[RLOO]) -> Trainer:
    """Each completion's baseline is the mean reward of the others in its group; the KL is part of the reward."""
    return RLOOTrainer(
        **policy_arguments(run),
        reward_funcs=reward_functions(run),
        args=RLOOConfig(**rollout_arguments(run), beta=run.algorithm.beta),
    )

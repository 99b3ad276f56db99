"""GSPO (Group Sequence Policy Optimization, arXiv 2507.18071, eq. 5 to 7) as TRL expresses it."""

from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from rlstride.config.algorithms import GSPO
from rlstride.training.run import Run, policy_arguments, reward_functions, rollout_arguments


def build(run: Run[GSPO]) -> Trainer:
    """Group-normalised advantages; one ratio for a completion, the geometric mean of its tokens', clipped as one.

    Each batch of rollouts is split into several minibatches, as in the paper: with a single update the ratio is 1
    throughout, and the clip idle. TRL logs the share of completions that it holds back as ``clip_ratio/region_mean``.
    """
    algorithm = run.algorithm
    return GRPOTrainer(
        **policy_arguments(run),
        reward_funcs=reward_functions(run),
        args=GRPOConfig(
            **rollout_arguments(run),
            epsilon_high=algorithm.epsilon_high,
            beta=0.0,
            loss_type="grpo",
            scale_rewards="group",
            importance_sampling_level="sequence",
        ),
    )

"""GRPO (DeepSeekMath, arXiv 2402.03300, eq. 3 and 4) as TRL expresses it."""

from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from rlstride.training.run import Run, problem_dataset, trainer_arguments, verifier_reward


def build(run: Run) -> Trainer:
    """Group-normalised advantages, the clipped ratio averaged over each completion, the k3 estimate of the KL."""
    return GRPOTrainer(
        model=str(run.base_folder),
        reward_funcs=verifier_reward(run.task),
        args=GRPOConfig(**trainer_arguments(run), loss_type="grpo", scale_rewards="group"),
        train_dataset=problem_dataset(run),
    )

"""Supervised fine-tuning on right solutions: the control that sees as many sequences as RL has rollouts."""

import random

from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from rlstride.config.algorithms import SFT
from rlstride.tasks import draw_problem
from rlstride.training.adapters import peft_config
from rlstride.training.run import Run, require_lengths, trainer_arguments


def build(run: Run[SFT]) -> Trainer:
    """Mean cross-entropy over the tokens of the solutions and their end of sequence; prompts are left out."""
    return SFTTrainer(
        model=str(run.base_folder),
        peft_config=peft_config(run.base_folder, run.training, run.updates),
        args=SFTConfig(
            **trainer_arguments(run),
            completion_only_loss=True,
            max_length=None,  # solution_dataset has refused what is too long: nothing is cut
        ),
        train_dataset=solution_dataset(run),
    )


def solution_dataset(run: Run[SFT]) -> Dataset:
    """A training problem, drawn anew, with its right solution for every sequence that the run will see."""
    rng = random.Random(f"{run.task.name}/sft/{run.seed}")
    problems = [draw_problem(run.task, "train", rng) for _ in range(run.training.steps * run.batch_size)]
    prompts, solutions = [run.render(p.prompt) for p in problems], [run.task.solution(p) for p in problems]
    require_lengths(run, prompts, solutions)
    return Dataset.from_dict({"prompt": prompts, "completion": solutions})

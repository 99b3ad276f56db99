"""Logit distillation (the paper's DIST): the student learns its teacher's whole next-token distributions.

The loss is the generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, eq. 1 and 2), as TRL expresses it,
averaged over the tokens of the batch. With the defaults (the teacher writes, beta 0) it is the knowledge distillation
of Hinton et al. (arXiv 1503.02531) on the teacher's own completions: as supervised as SFT, with soft labels.
"""

import random
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import DistillationConfig, DistillationTrainer

from rlstride.config.algorithms import Distillation
from rlstride.tasks import draw_problem
from rlstride.training.adapters import peft_config
from rlstride.training.run import Run, require_lengths, sampling_arguments, trainer_arguments


def build(run: Run[Distillation]) -> Trainer:
    """One completion for each prompt; teacher and student are compared at the temperature of the sampling."""
    algorithm = run.algorithm
    by_student = algorithm.completions_from == "student"
    trainer = StudentTrainer if by_student else OffPolicyDistillationTrainer
    sampling = sampling_arguments(run) if by_student else sampling_arguments(run, "hf")  # vLLM has the student alone
    return trainer(
        model=str(run.base_folder),
        peft_config=peft_config(run.base_folder, run.training, run.updates),
        teacher_model=str(run.teacher_folder),
        args=DistillationConfig(
            **trainer_arguments(run),
            **sampling,
            teacher_model_init_kwargs={"dtype": "float32"},
            beta=algorithm.beta,
        ),
        train_dataset=prompt_dataset(run),
    )


class StudentTrainer(DistillationTrainer):
    """A distillation trainer whose loss is computed in the precision asked for.

    TRL calls the transformers inside of its models, past the forward that accelerate has put under autocast.
    """

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        with self.accelerator.autocast():
            return super().compute_loss(*arguments, **options)


class OffPolicyDistillationTrainer(StudentTrainer):
    """A distillation trainer whose completions are the teacher's."""

    model_wrapped: Any

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> list[list[int]]:
        student, self.model_wrapped = self.model_wrapped, self.teacher_model
        try:
            completions: list[list[int]] = super()._generate_single_turn(*arguments, **options)
        finally:
            self.model_wrapped = student
        return completions


def prompt_dataset(run: Run[Distillation]) -> Dataset:
    """A training prompt, drawn anew, for every completion that the run will see."""
    rng = random.Random(f"{run.task.name}/distillation/{run.seed}")
    count = run.training.steps * run.batch_size
    prompts = [run.render(draw_problem(run.task, "train", rng).prompt) for _ in range(count)]
    require_lengths(run, prompts)
    return Dataset.from_dict({"prompt": prompts})

"""What a trainer is given: one cell's base, data, reward and settings, in TRL's own terms."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from rlstride.study.config import Algorithm, Training
from rlstride.tasks import Problem, Task, draw_problems

Reward = Callable[..., list[float]]


@dataclass(frozen=True)
class Run:
    """One cell, ready to be trained."""

    base_folder: Path
    state_folder: Path  # the trainer's own checkpoints
    task: Task
    training: Training
    algorithm: Algorithm
    seed: int
    device: str

    @property
    def batch_size(self) -> int:
        """Completions in an optimiser step."""
        return self.training.problems_per_step * self.training.completions_per_problem


def problem_dataset(run: Run) -> Dataset:
    """As many distinct training problems as the run will see, in columns ``prompt`` and ``answer``."""
    problems = draw_problems(run.task, "train", run.training.steps * run.training.problems_per_step, seed=run.seed)
    return Dataset.from_dict({"prompt": [p.prompt for p in problems], "answer": [p.answer for p in problems]})


def verifier_reward(task: Task) -> Reward:
    """A reward function in TRL's form: 1 where the verifier accepts the completion, else 0."""

    def verified(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        triples = zip(prompts, completions, answer, strict=True)
        return [float(task.verify(Problem(prompt, expected), completion)) for prompt, completion, expected in triples]

    return verified


def trainer_arguments(run: Run) -> dict[str, Any]:
    """The arguments that every TRL trainer of this project shares.

    TRL's defaults of bf16 and gradient checkpointing are active on a CPU too: both are off here, as masters are fp32.
    """
    return {
        "output_dir": str(run.state_folder),
        "max_steps": run.training.steps,
        "per_device_train_batch_size": run.batch_size,
        "num_generations": run.training.completions_per_problem,
        "max_completion_length": run.task.max_completion_tokens,
        "temperature": run.training.temperature,
        "learning_rate": run.algorithm.learning_rate,
        "beta": run.algorithm.beta,
        "epsilon": run.algorithm.epsilon,
        "warmup_steps": run.algorithm.warmup_steps,
        "max_grad_norm": run.algorithm.max_grad_norm,
        "lr_scheduler_type": "constant_with_warmup",
        "seed": run.seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": run.device == "cpu",
        "model_init_kwargs": {"dtype": "float32"},
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": run.training.keep_every,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }

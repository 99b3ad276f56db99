"""What a trainer is given: one cell's base, data, reward and settings, in TRL's own terms."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets import Dataset

from rlstride.config.algorithms import Optimisation, PolicyGradient
from rlstride.config.models import Chat
from rlstride.config.study_file import Training
from rlstride.errors import RequestError
from rlstride.tasks import Problem, Task, training_problems
from rlstride.tasks.rendering import Render, read_renderer
from rlstride.training.adapters import peft_config

Reward = Callable[..., list[float]]
A = TypeVar("A", bound=Optimisation)
P = TypeVar("P", bound=PolicyGradient)


@dataclass(frozen=True)
class Run(Generic[A]):
    """One cell, ready to be trained.

    Raises:
        RequestError: the processes cannot have equal shares of a minibatch.
    """

    base_folder: Path
    state_folder: Path  # the trainer's own checkpoints
    task: Task
    training: Training
    algorithm: A
    seed: int
    device: str
    teacher_folder: Path | None = None  # of a distilled cell
    processes: int = 1  # that share the steps
    chat: Chat | None = None  # how the model is spoken to

    def __post_init__(self) -> None:
        shared = self.batch_size // self.minibatches
        if shared % self.processes:
            raise RequestError(
                f"training: {shared} sequences in each update (problems_per_step x completions_per_problem / "
                f"minibatches) cannot be shared equally by {self.processes} processes; launch a number of processes "
                f"that divides {shared}"
            )

    @cached_property
    def render(self) -> Render:
        """From a problem's prompt to what the model reads."""
        return read_renderer(self.base_folder, self.chat)

    @property
    def batch_size(self) -> int:
        """Completions in a step, of all processes."""
        return self.training.problems_per_step * self.training.completions_per_problem

    @property
    def updates(self) -> int:
        """Optimiser updates of the whole run."""
        return self.training.steps * self.algorithm.updates_per_step

    @property
    def minibatches(self) -> int:
        """Parts of a batch, with an optimiser update each."""
        return self.algorithm.minibatches if isinstance(self.algorithm, PolicyGradient) else 1


def problem_dataset(run: Run[P]) -> Dataset:
    """As many training problems as the run will see: ``prompt`` as the model reads it, ``question`` and ``answer``."""
    problems = training_problems(run.task, run.training.steps * run.training.problems_per_step, seed=run.seed)
    return Dataset.from_dict(
        {
            "prompt": [run.render(problem.prompt) for problem in problems],
            "question": [problem.prompt for problem in problems],
            "answer": [problem.answer for problem in problems],
        }
    )


def verifier_reward(task: Task) -> Reward:
    """A reward function in TRL's form: 1 where the verifier accepts the completion, else 0."""

    def verified(
        prompts: list[str],
        completions: list[str],
        answer: list[str],
        question: list[str] | None = None,  # where it is not the prompt itself
        **columns: Any,
    ) -> list[float]:
        problems = [Problem(*each) for each in zip(question or prompts, answer, strict=True)]
        return [float(task.verify(*each)) for each in zip(problems, completions, strict=True)]

    return verified


def trainer_arguments(run: Run[A]) -> dict[str, Any]:
    """The arguments that every trainer of this project shares, RL or not.

    TRL's defaults of bf16 and gradient checkpointing are active on a CPU too: both are off here, as masters are fp32.
    Checkpoints and logs come at the end of a step, never between two updates of one batch.
    """
    updates = run.algorithm.updates_per_step
    return {
        "output_dir": str(run.state_folder),
        "per_device_train_batch_size": run.batch_size // run.minibatches // run.processes,
        "max_steps": run.updates,
        "learning_rate": run.algorithm.learning_rate,
        "warmup_steps": run.algorithm.warmup_steps,
        "max_grad_norm": run.algorithm.max_grad_norm,
        "lr_scheduler_type": "constant_with_warmup",
        "seed": run.seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": run.device == "cpu",
        "model_init_kwargs": {"dtype": "float32"},
        "logging_steps": updates,
        "save_strategy": "steps",
        "save_steps": run.training.keep_every * updates,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def policy_arguments(run: Run[P]) -> dict[str, Any]:
    """What all RL trainers are given of a cell, besides rewards and settings: the base, its adapter, the problems."""
    return {
        "model": str(run.base_folder),
        "peft_config": peft_config(run.base_folder, run.training, run.updates),
        "train_dataset": problem_dataset(run),
    }


def rollout_arguments(run: Run[P]) -> dict[str, Any]:
    """The arguments that TRL's GRPO and RLOO trainers share: one batch of rollouts a step, and its updates."""
    return {
        **trainer_arguments(run),
        "steps_per_generation": run.algorithm.minibatches,
        "num_iterations": run.algorithm.epochs,
        "num_generations": run.training.completions_per_problem,
        "max_completion_length": run.task.max_completion_tokens,
        "temperature": run.training.temperature,
        "epsilon": run.algorithm.epsilon,
    }

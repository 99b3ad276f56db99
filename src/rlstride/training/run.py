"""What a trainer is given: one cell's base, data, reward and settings, in TRL's own terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlstride.config.algorithms import Optimisation, PolicyGradient
from rlstride.config.models import Chat
from rlstride.config.training import VLLM, Generation, Training
from rlstride.errors import RequestError
from rlstride.extras import require
from rlstride.tasks import Task, training_problems
from rlstride.tasks.problems import stops_of
from rlstride.tasks.rendering import Render, renderer
from rlstride.training.adapters import peft_config
from rlstride.training.rewards import Reward, RewardTerm, reward_terms

A = TypeVar("A", bound=Optimisation)
P = TypeVar("P", bound=PolicyGradient)

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


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
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return AutoTokenizer.from_pretrained(self.base_folder)

    @cached_property
    def render(self) -> Render:
        """From a problem's prompt to what the model reads."""
        return renderer(self.tokenizer, self.chat)

    @property
    def batch_size(self) -> int:
        """Completions in a step, of all processes."""
        return self.training.problems_per_step * self.training.completions_per_problem

    @property
    def micro_batch(self) -> int:
        """Sequences in one forward and backward pass of a process: a divisor of its share of an update."""
        share = self.batch_size // self.minibatches // self.processes
        most = min(self.training.micro_batch or share, share)
        return next(size for size in range(most, 0, -1) if share % size == 0)

    @property
    def passes_per_update(self) -> int:
        """Forward and backward passes of a process whose gradients are summed for one update."""
        return self.batch_size // self.minibatches // self.processes // self.micro_batch

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return self.training.max_prompt_tokens or self.task.max_prompt_tokens

    @property
    def max_completion_tokens(self) -> int:
        """Tokens of the longest completion, its end included."""
        return self.training.max_completion_tokens or self.task.max_completion_tokens

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
    prompts = [run.render(problem.prompt) for problem in problems]
    require_lengths(run, prompts)
    return Dataset.from_dict(
        {
            "prompt": prompts,
            "question": [problem.prompt for problem in problems],
            "answer": [problem.answer for problem in problems],
        }
    )


def require_lengths(run: Run[Any], prompts: Sequence[str], solutions: Sequence[str] = ()) -> None:
    """Checks that all texts of a run have the lengths that it makes room for: none is cut.

    TRL reads prompts whole, however long, and cuts supervised texts at SFT's max_length without a word.

    Raises:
        RequestError: names the key, how many texts are too long, and the longest.
    """
    for name, key, texts, end, most in (
        ("prompts", "max_prompt_tokens", prompts, 0, run.max_prompt_tokens),
        ("solutions", "max_completion_tokens", solutions, 1, run.max_completion_tokens),
    ):
        found = run.tokenizer(list(texts), add_special_tokens=not end)["input_ids"] if texts else []
        lengths = [len(ids) + end for ids in found]
        if too_long := sum(length > most for length in lengths):
            raise RequestError(
                f"training: {too_long} of {len(lengths)} {name} are longer than {key} ({most} tokens), the longest "
                f"{max(lengths)}; raise {key}, or leave such rows out of the task"
            )


def reward_functions(run: Run[P]) -> list[Reward]:
    """What the study rewards completions for; their weights are among :func:`rollout_arguments`."""
    return [term.function for term in run_rewards(run)]


def run_rewards(run: Run[Any]) -> list[RewardTerm]:
    """The terms of a run's reward."""
    return reward_terms(run.task, run.training.rewards, run.max_completion_tokens)


def trainer_arguments(run: Run[A]) -> dict[str, Any]:
    """The arguments that every trainer of this project shares, RL or not.

    TRL's defaults of bf16 and gradient checkpointing are active on a CPU too: both are as the study says here.
    Checkpoints and logs come at the end of a step, never between two updates of one batch.
    """
    updates, training = run.algorithm.updates_per_step, run.training
    return {
        "output_dir": str(run.state_folder),
        "per_device_train_batch_size": run.micro_batch,
        "gradient_accumulation_steps": run.passes_per_update,
        "max_steps": run.updates,
        "learning_rate": run.algorithm.learning_rate,
        "warmup_steps": run.algorithm.warmup_steps,
        "max_grad_norm": run.algorithm.max_grad_norm,
        "weight_decay": training.weight_decay,
        "lr_scheduler_type": _SCHEDULES[training.schedule],
        "seed": run.seed,
        "bf16": training.precision == "bf16",
        "gradient_checkpointing": training.activation_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if training.activation_checkpointing else None,
        "use_cpu": run.device == "cpu",
        "model_init_kwargs": {"dtype": _DTYPES[training.masters]},
        "logging_steps": updates,
        "save_strategy": "steps",
        "save_steps": training.keep_every * updates,
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


def sampling_arguments(run: Run[A], generation: Generation | None = None) -> dict[str, Any]:
    """How every trainer that samples draws its completions.

    Args:
        run: says how.
        generation: who draws them; the study's, if left out.

    Raises:
        ExtraError: vLLM is asked for, and is not installed.
    """
    training = run.training
    generation = generation or training.generation
    arguments = {
        "max_completion_length": run.max_completion_tokens,
        "temperature": training.temperature,
        "top_p": training.top_p,
    }
    if generation == "hf":
        return arguments
    require("vllm")
    stops = {"generation_kwargs": {"stop": stops}} if (stops := stops_of(run.task)) else {}
    return arguments | vllm_arguments(training) | stops


def vllm_arguments(training: Training) -> dict[str, Any]:
    """vLLM's settings, under the names of TRL's configurations."""
    settings = (training.vllm or VLLM()).model_dump()
    mode = training.generation.removeprefix("vllm_")
    return {"use_vllm": True, "vllm_mode": mode, **{f"vllm_{name}": value for name, value in settings.items()}}


def rollout_arguments(run: Run[P]) -> dict[str, Any]:
    """The arguments that TRL's GRPO and RLOO trainers share: one batch of rollouts a step, and its updates.

    TRL's steps_per_generation are the passes over one batch, of which an update takes several where they are small.
    """
    return {
        **trainer_arguments(run),
        **sampling_arguments(run),
        "steps_per_generation": run.minibatches * run.passes_per_update,
        "num_iterations": run.algorithm.epochs,
        "num_generations": run.training.completions_per_problem,
        "epsilon": run.algorithm.epsilon,
        "reward_weights": [term.weight for term in run_rewards(run)],
    }

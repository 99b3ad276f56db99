"""Cold start: SFT of a pretrained base on right solutions, stopped long before the base does nothing else."""

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlstride.config.models import ColdStart
from rlstride.tasks.problems import Task, draw_at_most, draw_problem
from rlstride.tasks.rendering import Render, bare
from rlstride.zoo.pretraining import VALIDATION_PROBLEMS, accuracy, cross_entropy, encode_batch, update


@dataclass(frozen=True)
class ColdStartReport:
    """How a cold start went."""

    cold_start_steps: int
    cold_start_seconds: float
    cold_start_gain: float | None  # in validation accuracy at temperature 1, at the last look; None: none was asked for
    cold_start_reached: bool

    def as_dict(self) -> dict[str, float | int | bool]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def cold_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    recipe: ColdStart,
    seed: int,
    on_check: Callable[[int, float, float | None], None] = lambda step, loss, accuracy: None,
    render: Render = bare,
    on_step: Callable[[int, float], None] = lambda step, seconds: None,
) -> ColdStartReport:
    """Trains ``model`` in place on solutions of training problems until its accuracy has risen by ``recipe.gain``.

    Args:
        model: in float32.
        tokenizer: the model's.
        task: has the solutions.
        recipe: without a gain all of its steps are made, and no accuracy is looked at.
        seed: of the problems.
        on_check: called with (step, loss, validation accuracy; None where none is looked at) at every look.
        render: from a problem's prompt to what the model reads.
        on_step: called with (step, seconds that it took) after every step.
    """
    started = time.monotonic()
    rng = random.Random(f"cold start/{task.name}/{seed}")
    look = (lambda: None) if recipe.gain is None else _look(model, tokenizer, task, seed, render)
    before, gain = look(), None
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, recipe.max_steps + 1):
        began = time.monotonic()
        model.train()
        problems = [draw_problem(task, "train", rng) for _ in range(recipe.batch_size)]
        pairs = [(render(problem.prompt), task.solution(problem)) for problem in problems]
        ids, labels = encode_batch(tokenizer, pairs)
        loss = update(model, optimizer, cross_entropy(model, ids.to(model.device), labels.to(model.device)))
        model.eval()
        on_step(step, time.monotonic() - began)
        if step % recipe.check_every and step < recipe.max_steps:
            continue
        measured = look()
        on_check(step, loss, measured)
        if recipe.gain is not None and measured is not None and before is not None:
            gain = measured - before
            if gain >= recipe.gain:
                break
    reached = recipe.gain is None or (gain is not None and gain >= recipe.gain)
    return ColdStartReport(step, time.monotonic() - started, gain, reached)


def _look(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Task, seed: int, render: Render
) -> Callable[[], float]:
    """Accuracy on validation problems at temperature 1."""
    validation = draw_at_most(task, "validation", VALIDATION_PROBLEMS, seed=seed)
    return lambda: accuracy(model, tokenizer, task, validation, temperature=1.0, render=render)

"""Cold start: SFT of a pretrained base on right solutions, stopped long before the base does nothing else."""

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlstride.config.models import ColdStart
from rlstride.tasks.problems import Task, draw_at_most, draw_problem
from rlstride.zoo.pretraining import VALIDATION_PROBLEMS, accuracy, cross_entropy, encode_batch, update


@dataclass(frozen=True)
class ColdStartReport:
    """How a cold start went."""

    cold_start_steps: int
    cold_start_seconds: float
    cold_start_gain: float  # in validation accuracy at temperature 1, as it was at the last look
    cold_start_reached: bool

    def as_dict(self) -> dict[str, float | int | bool]:
        return asdict(self)


def cold_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    recipe: ColdStart,
    seed: int,
    on_check: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> ColdStartReport:
    """Trains ``model`` in place on solutions of training problems until its accuracy has risen by ``recipe.gain``.

    Args:
        on_check: called with (step, loss, validation accuracy) at every look.
    """
    started = time.monotonic()
    rng = random.Random(f"cold start/{task.name}/{seed}")
    validation = draw_at_most(task, "validation", VALIDATION_PROBLEMS, seed=seed)
    before = accuracy(model, tokenizer, task, validation, temperature=1.0)
    gain = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, recipe.max_steps + 1):
        model.train()
        problems = [draw_problem(task, "train", rng) for _ in range(recipe.batch_size)]
        ids, labels = encode_batch(tokenizer, [(problem.prompt, task.solution(problem)) for problem in problems])
        loss = update(model, optimizer, cross_entropy(model, ids.to(model.device), labels.to(model.device)))
        if step % recipe.check_every and step < recipe.max_steps:
            continue
        model.eval()
        measured = accuracy(model, tokenizer, task, validation, temperature=1.0)
        on_check(step, loss, measured)
        gain = measured - before
        if gain >= recipe.gain:
            break
    return ColdStartReport(step, time.monotonic() - started, gain, gain >= recipe.gain)

"""Pretraining of a tiny base on the task's mixture of solution formats, to a target accuracy with a cap on steps."""

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlstride.config.models import Pretraining
from rlstride.generation import asked_generation
from rlstride.tasks.problems import Problem, Task, draw_at_most, draw_problem
from rlstride.tasks.rendering import Render, bare

VALIDATION_PROBLEMS = 512  # or all of them, where a task has fewer
IGNORED = -100  # the label that transformers' loss leaves out
Loss = Callable[[PreTrainedModel, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class PretrainingReport:
    """How the pretraining of a base went."""

    steps: int
    seconds: float
    loss: float  # mean per completion token over the last check interval, in nats
    accuracy: float  # validation accuracy at temperature 1 of the finished base
    reached_target: bool

    def as_dict(self) -> dict[str, float | int | bool]:
        return asdict(self)


def learning_rate_factor(step: int, warmup_steps: int, cooldown_start: int | None, cooldown_steps: int) -> float:
    """The share of the peak rate at a step: linear warm-up, constant, then linear decay from ``cooldown_start`` on."""
    warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
    if cooldown_start is None:
        return warmup
    return warmup * max(0.0, 1 - (step - cooldown_start) / cooldown_steps)


def encode_batch(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (prompt, completion) pairs, padded on the right, without a mask.

    Padding needs no mask on the right: no real token attends to what follows it, and the labels leave it out.

    Returns:
        ids (B, T) and labels (B, T), with prompt and padding positions of the labels ignored.
    """
    eos = tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    completions = tokenizer([completion for _, completion in pairs], add_special_tokens=False)["input_ids"]
    rows = [prompt + completion + [eos] for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])  # (B, T)
    labels = ids.clone()
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        labels[index, : len(prompt)] = IGNORED
        labels[index, len(row) :] = IGNORED
    return ids, labels


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    max_new_tokens: int,
    temperature: float,
    render: Render = bare,
) -> list[str]:
    """One completion for each problem; temperature 0 decodes greedily. Samples come from torch's global generator.

    Published tokenizers may pad on the right or not at all, and published models have generation defaults of their own.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    prompts = [render(problem.prompt) for problem in problems]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    with asked_generation(model):
        ids = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, **sampling)
    completions: list[str] = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    problems: list[Problem],
    temperature: float,
    render: Render = bare,
) -> float:
    """Share of the problems that one completion each solves."""
    completions = sample_completions(model, tokenizer, problems, task.max_completion_tokens, temperature, render)
    return sum(task.verify(problem, text) for problem, text in zip(problems, completions, strict=True)) / len(problems)


def cross_entropy(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over all labelled tokens of a batch: ids (B, T), labels (B, T)."""
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


def update(model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """One optimiser step with the gradient clipped to norm 1; returns the loss."""
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    recipe: Pretraining,
    on_check: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
    loss_function: Loss = cross_entropy,
) -> PretrainingReport:
    """Trains ``model`` in place on demonstrations of training problems.

    The rate is constant until the validation accuracy at temperature 1 reaches the target, then falls to zero over the
    cool-down.

    Args:
        on_check: called with (step, mean loss, validation accuracy) at every look.
        loss_function: of (model, ids (B, T), labels (B, T)).
    """
    started = time.monotonic()
    rng = random.Random(f"pretrain/{task.name}/{recipe.seed}")
    torch.manual_seed(recipe.seed)
    validation = draw_at_most(task, "validation", VALIDATION_PROBLEMS, seed=recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    cooldown_start: int | None = None
    last_step = recipe.max_steps
    losses: list[float] = []
    reached = False
    step = 0
    while step < last_step:
        factor = learning_rate_factor(step, recipe.warmup_steps, cooldown_start, recipe.cooldown_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        model.train()
        problems = [draw_problem(task, "train", rng) for _ in range(recipe.batch_size)]
        ids, labels = encode_batch(
            tokenizer, [(problem.prompt, task.demonstrate(problem, rng)) for problem in problems]
        )
        losses.append(update(model, optimizer, loss_function(model, ids.to(model.device), labels.to(model.device))))
        step += 1
        if step % recipe.check_every == 0 and cooldown_start is None:
            model.eval()
            measured = accuracy(model, tokenizer, task, validation, temperature=1.0)
            on_check(step, sum(losses[-recipe.check_every :]) / len(losses[-recipe.check_every :]), measured)
            if measured >= recipe.target_accuracy:
                reached, cooldown_start, last_step = True, step, min(step + recipe.cooldown_steps, recipe.max_steps)
            elif step + recipe.cooldown_steps >= recipe.max_steps:
                cooldown_start = step
    model.eval()
    final = accuracy(model, tokenizer, task, validation, temperature=1.0)
    recent = losses[-recipe.check_every :]
    return PretrainingReport(step, time.monotonic() - started, sum(recent) / len(recent), final, reached)

"""What all bases share: the folder that they are written to, and the cold start that may come before."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlstride.atomic_files import write_text
from rlstride.config.models import ColdStart
from rlstride.errors import WorkError
from rlstride.outputs import BASE_MARK, CARD
from rlstride.tasks import Task
from rlstride.tasks.rendering import Render, bare
from rlstride.zoo.cold_start import cold_start

REPORT_FILE = "pretraining.json"
COLD_START_FOLDER = "cold_start"  # in a base's folder: its trajectory, where it is kept
Report = dict[str, float | int | bool]


def write_base(
    folder: Path,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
    *,
    file: str = REPORT_FILE,
) -> None:
    """Writes a base: model and tokenizer, a card, and last its report, in a file of this name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    describe_base(folder, name, report, file=file)


def describe_base(folder: Path, name: str, report: Report, *, file: str = REPORT_FILE) -> None:
    """Writes the card and the report of a base whose model and tokenizer are there."""
    write_text(folder / CARD, f"{BASE_MARK}\n# {name}\n\nA base, made by `rlstride pretrain`.\n")
    (folder / file).write_text(json.dumps(report, indent=1) + "\n")


def start_cold(
    name: str,
    recipe: ColdStart,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    seed: int,
    render: Render = bare,
    on_step: Callable[[int, float], None] = lambda step, seconds: None,
) -> Report:
    """Trains a base on right solutions; arguments are those of :func:`rlstride.zoo.cold_start.cold_start`.

    Raises:
        RequestError: the task has no solutions.
        WorkError: the accuracy did not rise by as much as it should.
    """
    label = f"{name}'s cold start"
    result = cold_start(
        model, tokenizer, task, recipe, seed, lambda *numbers: print_check(label, *numbers), render, on_step
    )
    if not result.cold_start_reached:
        raise WorkError(
            f"{label}: validation accuracy rose by {result.cold_start_gain:.3f} in {recipe.max_steps} steps, less than "
            f"{recipe.gain}; raise its max_steps or learning_rate in models.yaml"
        )
    return result.as_dict()


def parameters(model: PreTrainedModel) -> int:
    """How many a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def print_check(name: str, step: int, loss: float, measured: float | None) -> None:
    """One line of a pretraining's log; the accuracy where it was looked at."""
    seen = "" if measured is None else f", validation accuracy {measured:.3f}"
    print(f"{name}: step {step}, loss {loss:.3f}{seen}", flush=True)

"""What callbacks of transformers' Trainer share: its checkpoints' folder, its optimiser's state, a model's scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import TrainerState, TrainingArguments


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the trainer's checkpoint at the step that it is at."""
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


class Validate(Protocol):
    """Scores a model on held-out problems."""

    def __call__(self, model: torch.nn.Module, draw: int) -> Sequence[float]:
        """A score for every problem. Calls of one ``draw`` get the same problems and the same random numbers."""
        ...


def clear_moments(optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor]) -> None:
    """Sets Adam's averages of some tensors, and its counts, to zero: they describe gradients elsewhere."""
    for tensor in tensors:
        for value in optimizer.state.get(tensor, {}).values():
            if isinstance(value, Tensor):
                value.zero_()

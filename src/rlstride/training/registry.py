"""Loads the trainers; rlstride.config.algorithms has the list."""

from typing import Any

from transformers import Trainer

from rlstride.config.algorithms import ALGORITHMS
from rlstride.generation import generate_as_asked
from rlstride.shared_prompts import share_prompts
from rlstride.training.run import Run


def build_trainer(run: Run[Any]) -> Trainer:
    """A cell's trainer, whose rollouts are drawn as the study says, whatever the base's generation_config.json has."""
    trainer: Trainer = ALGORITHMS[run.algorithm.trainer].load()(run)
    if run.training.share_prompts:
        share_prompts(trainer)
    generate_as_asked(trainer)
    return trainer

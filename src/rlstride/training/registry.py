"""Loads the trainers; rlstride.config.algorithms has the list."""

from typing import Any

from transformers import Trainer

from rlstride.config.algorithms import ALGORITHMS
from rlstride.generation import generate_as_asked, stop_rollouts
from rlstride.shared_prompts import share_prompts
from rlstride.tasks.problems import stops_of
from rlstride.training.run import Run


def build_trainer(run: Run[Any]) -> Trainer:
    """A cell's trainer, whose rollouts are drawn as study and task say, whatever the base's own defaults are."""
    trainer: Trainer = ALGORITHMS[run.algorithm.trainer].load()(run)
    if run.training.share_prompts:
        share_prompts(trainer)
    generate_as_asked(trainer)
    stop_rollouts(trainer, stops_of(run.task))
    return trainer

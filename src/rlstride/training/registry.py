"""The trainers by name. A new algorithm is a module with ``build``, and a line here and in study.config."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from rlstride.generation import generate_as_asked
from rlstride.training import dapo, distillation, dr_grpo, grpo, gspo, ppo, reinforce_pp, rloo, sft
from rlstride.training.run import Run

TRAINERS: dict[str, Callable[[Run[Any]], Trainer]] = {
    "grpo": grpo.build,
    "ppo": ppo.build,
    "reinforce_pp": reinforce_pp.build,
    "rloo": rloo.build,
    "dr_grpo": dr_grpo.build,
    "dapo": dapo.build,
    "gspo": gspo.build,
    "sft": sft.build,
    "distillation": distillation.build,
}


def build_trainer(run: Run[Any]) -> Trainer:
    """A cell's trainer, whose rollouts are drawn as the study says, whatever the base's generation_config.json has."""
    trainer = TRAINERS[run.algorithm.trainer](run)
    generate_as_asked(trainer)
    return trainer

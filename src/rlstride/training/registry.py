"""The trainers by name. A new algorithm is a module with ``build``, and a line here and in study.config."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer

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

"""The trainers by name. A new algorithm is a module with ``build``, and a line here and in study.config."""

from collections.abc import Callable

from transformers import Trainer

from rlstride.training import grpo, rloo
from rlstride.training.run import Run

TRAINERS: dict[str, Callable[[Run], Trainer]] = {
    "grpo": grpo.build,
    "rloo": rloo.build,
}

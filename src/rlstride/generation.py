"""Generation that does what it is asked to: a published model's own defaults for chatting stay out of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import GenerationConfig


@contextmanager
def asked_generation(model: Any) -> Iterator[None]:
    """Inside, ``model.generate`` follows its arguments, and transformers' own defaults where they leave something open.

    Outside, it fills every argument that is left open from the model's generation_config.json: published models have a
    repetition penalty, min_p, suppressed tokens or a cut at top_k there. Only the end and padding tokens count here.

    Args:
        model: transformers' or PEFT's.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT reads the config of the latter
    own = inner.generation_config
    inner.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    try:
        yield
    finally:
        inner.generation_config = own


def generate_as_asked(trainer: Any) -> None:
    """Has a TRL trainer draw its rollouts, a teacher's too, inside :func:`asked_generation`.

    TRL passes temperature, top_p, top_k and repetition_penalty; all else would come from the base's file.

    Args:
        trainer: one that draws nothing, such as SFT's, stays as it is.
    """
    if not hasattr(trainer, "_generate_single_turn"):
        return
    draw, models = trainer._generate_single_turn, [trainer.model, getattr(trainer, "teacher_model", None)]

    def draw_as_asked(*arguments: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for model in models:
                if model is not None:
                    stack.enter_context(asked_generation(trainer.accelerator.unwrap_model(model)))
            return draw(*arguments, **options)

    trainer._generate_single_turn = draw_as_asked


def settled_sampling(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` that leave nothing of sampling open; temperature 0 is greedy decoding.

    Args:
        options: a temperature alone says whether there is sampling. Sampling without a temperature is at 1, and without
            top_k from all tokens: transformers would keep the 50 likeliest.
    """
    temperature = options.get("temperature")
    sampled = options.get("do_sample")
    if sampled is None:
        sampled = bool(temperature)
    if temperature == 0:
        sampled = False
    others = {name: value for name, value in options.items() if name not in ("do_sample", "temperature")}
    if not sampled:
        return {**others, "do_sample": False}
    return {"top_k": 0, **others, "do_sample": True, "temperature": 1.0 if temperature is None else temperature}

"""Generation that does what it is asked to: a published model's own defaults for chatting stay out of it."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList


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


def draw_inside(trainer: Any, inside: Callable[[Any], AbstractContextManager[None]]) -> None:
    """Has a TRL trainer draw its rollouts, a teacher's too, inside what a function makes of the model that draws.

    Args:
        trainer: one that draws nothing, such as SFT's, stays as it is.
        inside: from a model, unwrapped, to a context.
    """
    if not hasattr(trainer, "_generate_single_turn"):
        return
    draw, models = trainer._generate_single_turn, [trainer.model, getattr(trainer, "teacher_model", None)]

    def draw_so(*arguments: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for model in models:
                if model is not None:
                    stack.enter_context(inside(trainer.accelerator.unwrap_model(model)))
            return draw(*arguments, **options)

    trainer._generate_single_turn = draw_so


def generate_as_asked(trainer: Any) -> None:
    """Has a TRL trainer draw its rollouts, a teacher's too, inside :func:`asked_generation`.

    TRL passes temperature, top_p, top_k and repetition_penalty; all else would come from the base's file.

    Args:
        trainer: one that draws nothing, such as SFT's, stays as it is.
    """
    draw_inside(trainer, asked_generation)


@contextmanager
def generating(model: Any, generate: Callable[..., Any], *first: Any) -> Iterator[None]:
    """Inside, ``model.generate`` is another function: it is given the model's own, and what else is to come first."""
    before = vars(model).get("generate")
    model.generate = partial(generate, model.generate, *first)
    try:
        yield
    finally:
        if before is None:
            del model.generate  # the instance's: the class's is back
        else:
            model.generate = before


def stop_rollouts(trainer: Any, stops: Sequence[str]) -> None:
    """Has a TRL trainer end its rollouts at the first of some texts, as at the end token; all that follows is cut.

    Args:
        trainer: one that draws nothing, such as SFT's, stays as it is.
        stops: texts; none leaves the trainer as it is.
    """
    if not stops or not hasattr(trainer, "_generate_single_turn"):
        return
    tokenizer = trainer.processing_class
    draw_inside(trainer, lambda model: generating(model, _generate_to_stop, tokenizer, stops))
    draw = trainer._generate_single_turn

    def draw_to_stop(*arguments: Any, **options: Any) -> Any:
        drawn = draw(*arguments, **options)
        if not isinstance(drawn, tuple):  # of distillation
            return [ids[: tokens_to_stop(tokenizer, ids, stops)] for ids in drawn]
        rows, logps = drawn
        sizes = [tokens_to_stop(tokenizer, ids, stops) for ids in rows]
        cut = [ids[:size] for ids, size in zip(rows, sizes, strict=True)]
        return cut, logps and [row[:size] for row, size in zip(logps, sizes, strict=True)]

    trainer._generate_single_turn = draw_to_stop


class _Stops(StoppingCriteria):
    """Ends the completions in which one of some texts stands; transformers' own fails with small vocabularies."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: int) -> None:
        self._tokenizer, self._stops, self._prompt = tokenizer, stops, prompt
        self._recent = max(map(len, stops)) + 1  # tokens: at least one character each, and the last may write several

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        recent = input_ids[:, max(self._prompt, input_ids.shape[1] - self._recent) :]
        texts = self._tokenizer.batch_decode(recent, skip_special_tokens=True)
        ended = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _generate_to_stop(
    generate: Callable[..., Any], tokenizer: Any, stops: Sequence[str], input_ids: Tensor, **options: Any
) -> Any:
    criteria = StoppingCriteriaList([_Stops(tokenizer, stops, input_ids.shape[1])])
    return generate(input_ids=input_ids, stopping_criteria=criteria, **options)


def tokens_to_stop(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> int:
    """How many tokens of a completion write the first of some texts in it, and what is before; all where none is."""

    def stands(size: int) -> bool:
        text = tokenizer.decode(list(tokens[:size]), skip_special_tokens=True)
        return any(stop in text for stop in stops)

    return 1 + bisect_left(range(1, len(tokens)), True, key=stands) if len(tokens) else 0


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

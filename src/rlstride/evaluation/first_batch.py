"""What a run's first rollouts look like, before it is started: prompts, completions and rewards of a few problems."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rlstride.config.models import PublishedModel
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.study.paths import base_folder, required_base, source_folder
from rlstride.study.study import Study
from rlstride.tasks import build_task, training_problems
from rlstride.tasks.problems import stops_of
from rlstride.tasks.rendering import renderer


def first_batch(study: Study, model: str, problems: int, *, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """A completion for each of the first problems of a study's runs, at the temperature of training.

    Args:
        study: names task, seeds and temperature.
        model: one of its models, whose base is there, or whose source is a folder.
        problems: how many.
        device: cpu or cuda.

    Yields:
        model; prompt and completion as they are written; reward, the verifier's; their lengths in tokens.

    Raises:
        RequestError: the model or the task's problems cannot be read.
    """
    task, training, seed = build_task(study.spec.task, study.task), study.spec.training, study.spec.seeds[0]
    drawn = training_problems(task, training.steps * training.problems_per_step, seed=seed)[:problems]
    lm = Bench(device).load(parse_models([f"base@0={folder_of(study, model)}"])[0])
    torch.manual_seed(seed)
    render = renderer(lm.tokenizer, study.chat(model))
    prompts = [render(problem.prompt) for problem in drawn]
    longest = training.max_completion_tokens or task.max_completion_tokens
    completions = lm.sample(prompts, training.temperature, longest, stops_of(task))
    for problem, prompt, completion in zip(drawn, prompts, completions, strict=True):
        text = str(lm.tokenizer.decode(completion.tokens, skip_special_tokens=True))
        yield {
            "model": model,
            "prompt": prompt,
            "completion": text,
            "reward": float(task.verify(problem, text)),
            "prompt_tokens": len(completion.prompt),
            "completion_tokens": len(completion.tokens),
        }


def folder_of(study: Study, model: str) -> Path:
    """The folder of a model before any training: its source, where that is a folder, else the base that was made."""
    spec = study.models[model]
    if not isinstance(spec, PublishedModel) or spec.cold_start is not None:
        return required_base(study, model)
    places = [source_folder(study, model) or Path(str(spec.source)), base_folder(study, model)]
    return next((place for place in places if (place / "config.json").is_file()), None) or required_base(study, model)

"""What the task YAMLs call: local problems in, the verifier's scores out."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from rlstride.config.study_file import TasksFile
from rlstride.tasks import Problem, Split, Task, build_task, draw_problems

PROBLEM_SEED = 0  # fixed: every model of every study on a task answers the same problems in the same order


def problems(*, name: str, spec: Mapping[str, Any], split: Split, problems: int, **_: object) -> dict[str, Dataset]:
    """The data set of a task, drawn here: nothing is downloaded.

    Args:
        name: the task's entry in tasks.yaml.
        spec: that entry.
        split: which problems; training never sees those of ``validation`` and ``test``.
        problems: how many.
        _: whatever else lm-eval's metadata holds.

    Returns:
        one lm-eval split, ``test``, with columns prompt, answer, family, name and spec.
    """
    written = json.dumps(spec, sort_keys=True)
    drawn = draw_problems(_task(name, written), split, problems, seed=PROBLEM_SEED)
    columns = {
        "prompt": [problem.prompt for problem in drawn],
        "answer": [problem.answer for problem in drawn],
        "family": [problem.family or problem.prompt for problem in drawn],
        "name": [name] * len(drawn),
        "spec": [written] * len(drawn),
    }
    return {"test": Dataset.from_dict(columns)}


def every_sample(responses: Sequence[Sequence[str]], documents: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """lm-eval's filter: keeps all completions of a problem, where its default keeps the first."""
    return [list(completions) for completions in responses]


def score(document: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The verifier's verdict on a problem's completions: the mean of its n samples (avg@n).

    Returns:
        accuracy, and format_NAME: the share of the completions in each solution format and in none of them.
    """
    task = _task(document["name"], document["spec"])
    problem = Problem(document["prompt"], document["answer"])
    (completions,) = results
    formats = [task.format_of(completion) for completion in completions]
    return {
        "accuracy": sum(task.verify(problem, completion) for completion in completions) / len(completions),
        **{f"format_{name}": formats.count(name) / len(completions) for name in (*task.formats, "other")},
    }


@functools.lru_cache(maxsize=8)
def _task(name: str, spec: str) -> Task:
    """lm-eval hands a function the document alone, so each document carries its task's specification."""
    return build_task(name, TasksFile.model_validate({name: json.loads(spec)}).root[name])

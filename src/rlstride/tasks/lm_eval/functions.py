"""What the task YAMLs call: local problems in, the verifier's scores out."""

import functools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from rlstride.config.study_file import TasksFile
from rlstride.tasks import Problem, Split, Task, build_task, draw_problems
from rlstride.tasks.problems import mean_metrics, stops_of

EVERY_SAMPLE = "every_sample"  # the filter's name
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


def score(document: Mapping[str, Any], results: Sequence[Sequence[str]], begins: str = "") -> dict[str, float]:
    """The verifier's verdict on a problem's completions: the mean of its n samples (avg@n).

    Args:
        document: a row of :func:`problems`.
        results: the completions, in a list of one.
        begins: what stood in the prompt of each completion's beginning.

    Returns:
        accuracy, and whatever the task measures of a completion.
    """
    task = _task(document["name"], document["spec"])
    problem = Problem(document["prompt"], document["answer"])
    completions = [begins + completion for completion in results[0]]
    verdicts = [task.verify(problem, completion) for completion in completions]
    return {
        "accuracy": sum(verdicts) / len(completions),
        **mean_metrics(task, [problem] * len(completions), completions),
    }


def config_of(name: str, task: Task) -> dict[str, Any]:
    """lm-eval's configuration of a task of a study: what the YAML files beside this one say of theirs.

    Args:
        name: the task's, as lm-eval shall know it.
        task: which measures what stands in the table beside accuracy.
    """
    metrics = ("accuracy", *task.measure(task.draw(random.Random(0)), ""))
    return {
        "task": name,
        "custom_dataset": problems,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {"until": stops_of(task), "max_gen_toks": task.max_completion_tokens, "do_sample": False},
        "repeats": 1,
        "filter_list": [{"name": EVERY_SAMPLE, "filter": [{"function": "custom", "filter_fn": every_sample}]}],
        "process_results": score,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": 1.0},
    }


@functools.lru_cache(maxsize=8)
def _task(name: str, spec: str) -> Task:
    """lm-eval hands a function the document alone, so each document carries its task's specification."""
    return build_task(name, TasksFile.model_validate({name: json.loads(spec)}).root[name])

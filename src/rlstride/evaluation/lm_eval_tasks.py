"""Any task as lm-eval runs it on one model: requests, HFLM's generate_until, the task's filter, process_results."""

import numbers
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from rlstride.errors import RequestError
from rlstride.evaluation.completions import scores_each_completion
from rlstride.evaluation.lm import CountingHFLM, quiet_lm_eval
from rlstride.evaluation.metrics import metric_rows
from rlstride.evaluation.prompting import Prompting
from rlstride.evaluation.score_tables import Measurement
from rlstride.stats.intervals import Interval, columns_of
from rlstride.tasks.lm_eval import FOLDER

_FEWSHOT_SEED = 1234  # lm-eval's own


@dataclass(frozen=True)
class TaskRun:
    """What lm-eval's ``evaluate`` gave for one task on one model.

    Attributes:
        documents: with their responses and metrics, in order; each once for every filter.
        metrics: of the task, by "metric,filter".
        seconds: of generating and scoring.
        tokens: that were generated.
        cut: prompts that were too long for the model, and lost their beginnings.
    """

    documents: list[Mapping[str, Any]]
    metrics: Mapping[str, Any]
    seconds: float
    tokens: int
    cut: int


def task_manager(names: Sequence[str], where: str) -> TaskManager:
    """lm-eval's tasks by name: the project's own, YAML files given by path, and, if need be, all that lm-eval ships.

    Nothing is downloaded yet.

    Args:
        names: of tasks, groups and tags, or paths.
        where: they are named, for the error.

    Raises:
        RequestError: a name is none of these.
    """
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    if any(name not in manager.all_tasks and not Path(name).is_file() for name in names):
        manager = TaskManager(include_path=str(FOLDER))  # reads thousands of files, which takes seconds
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise RequestError(
                f"{where}: lm-eval has no task, group or tag {name!r}, and there is no such YAML file "
                "(`lm_eval ls tasks` lists the names)"
            )
    return manager


def loaded_tasks(manager: TaskManager, names: Sequence[str]) -> dict[str, Any]:
    """Tasks that a manager knows, with their data, which lm-eval may download."""
    with quiet_lm_eval():
        tasks: dict[str, Any] = manager.load(list(names))["tasks"]
    return tasks


def score_task(
    lm: CountingHFLM,
    task: Any,
    seed: int,
    limit: int | None,
    prompting: Prompting | None = None,
    with_texts: bool = False,
) -> Measurement:
    """A model's primary metric (the task's first, under its first filter), and all others.

    The interval is from lm-eval's standard error, or where every completion was scored by itself a bootstrap over
    problems: then pass@k has columns of its own.

    Args:
        lm: the model.
        task: lm-eval's.
        seed: of the sampling.
        limit: the first so many problems; all if left out.
        prompting: how the task is put, its number of worked examples and generation arguments aside: these it holds.
        with_texts: whether prompts and completions are kept.

    Raises:
        RequestError: pass@k is asked for, but completions are not just right or wrong.
    """
    asked = prompting or Prompting()
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    found = run_task(lm, task, seed, limit=limit, bootstrap_iters=1000, prompting=asked)
    pass_at = asked.pass_at if scores_each_completion(task) else None
    rows = metric_rows(found.documents, found.metrics, task.higher_is_better(), pass_at)
    first = rows[0]
    key = f"{first['metric']},{first['filter']}"
    chances = [row for row in rows[1:] if f"{row['metric']},{row['filter']}" == key]
    if len(chances) < len(pass_at or ()):
        raise RequestError(
            f"{task.task_name}: pass@k counts completions that are right, but {key} is not 0 or 1 of each of them"
        )
    further = columns_of({row["measure"]: Interval(row["value"], row["low"], row["high"]) for row in chances})
    return Measurement(
        n=first["n"],
        samples=first["samples"],
        accuracy=first["value"],
        low=first["low"],
        high=first["high"],
        seconds=found.seconds,
        tokens=found.tokens,
        scores=first["scores"],
        more={"metric": key, "cut_prompts": found.cut, **further},
        metrics=rows,
        texts=document_texts(found.documents) if with_texts else [],
    )


def document_texts(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each document's model was given, what it answered, and its scores, as JSON holds them.

    Args:
        documents: as lm-eval logs them, each once for every filter.

    Returns:
        for each document doc_id, prompt (a list where its requests differ in it), target and scores by "metric,filter";
        completions and answers (what each filter left of them) where text was generated, else continuations and their
        loglikelihoods.
    """
    found: dict[int, dict[str, Any]] = {}
    for document in documents:
        arguments, drawn = document["arguments"], document["resps"]
        entry = found.get(document["doc_id"])
        if entry is None:
            prompts = list(dict.fromkeys(request[0] for request in arguments))
            entry = {"doc_id": int(document["doc_id"]), "prompt": prompts[0] if len(prompts) == 1 else prompts}
            entry["target"] = _plain(document["target"])
            if len(arguments[0]) > 1 and isinstance(arguments[0][1], Mapping):
                entry |= {"completions": _plain(drawn[0]), "answers": {}}
            else:
                entry["continuations"] = [request[1] for request in arguments if len(request) > 1]
                entry["loglikelihoods"] = [
                    _plain(each[0][0] if isinstance(each[0], tuple) else each[0]) for each in drawn
                ]
            entry["scores"] = {}
            found[document["doc_id"]] = entry
        if "answers" in entry:
            entry["answers"][document["filter"]] = _plain(document["filtered_resps"][0])
        for name in document["metrics"]:
            entry["scores"][f"{name},{document['filter']}"] = _plain(document[name])
    return list(found.values())


def run_task(
    lm: CountingHFLM,
    task: Any,
    seed: int,
    *,
    limit: int | None = None,
    bootstrap_iters: int = 0,
    prompting: Prompting | None = None,
) -> TaskRun:
    """lm-eval's ``evaluate`` of one task on one model.

    Args:
        seed: of everything that is drawn: few-shot examples have lm-eval's own seed, so that all models see the same.
        prompting: how the task is put; bare if left out.
    """
    asked = prompting or Prompting()
    task.set_fewshot_seed(_FEWSHOT_SEED)
    torch.manual_seed(seed)
    lm.chat_template_args = dict(asked.template_options)
    tokens, cut, started = lm.tokens, lm.cut, time.monotonic()
    with quiet_lm_eval():
        results = evaluate(
            lm,
            {"tasks": {task.task_name: task}},
            limit=limit,
            bootstrap_iters=bootstrap_iters,
            system_instruction=asked.system_prompt,
            apply_chat_template=asked.chat_template,
            fewshot_as_multiturn=asked.multiturn,
        )
    seconds = time.monotonic() - started
    documents = sorted(results["samples"][task.task_name], key=lambda document: int(document["doc_id"]))
    _require_system_prompt(documents, task, asked)
    return TaskRun(documents, results["results"][task.task_name], seconds, lm.tokens - tokens, lm.cut - cut)


def _require_system_prompt(documents: Sequence[Mapping[str, Any]], task: Any, asked: Prompting) -> None:
    """Where a chat template fails, lm-eval tries again without the system message, and warns in its log alone."""
    if asked.system_prompt is None or task.OUTPUT_TYPE == "loglikelihood_rolling":
        return
    text = asked.system_prompt.strip()
    lost = sum(text not in str(document["arguments"][0][0]) for document in documents)
    if lost:
        raise RequestError(
            f"--system-prompt: the chat template refuses it in {lost} of {len(documents)} prompts of {task.task_name}"
        )


def _plain(value: Any) -> Any:
    """A value as JSON holds it: numpy's numbers as Python's, anything unknown as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)

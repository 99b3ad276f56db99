"""Tasks as lm-eval runs them on one model: requests, HFLM's generate_until, the task's filter, process_results."""

import hashlib
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from rlstride.errors import RequestError
from rlstride.evaluation.intervals import mean_interval
from rlstride.evaluation.lm import CountingHFLM, quiet_lm_eval
from rlstride.evaluation.tables import Measurement
from rlstride.study.config import Decoding
from rlstride.study.load import Study
from rlstride.tasks import Split, build_task
from rlstride.tasks.lm_eval import FOLDER, lm_eval_name

_Z95 = 1.959964
_FEWSHOT_SEED = 1234  # lm-eval's own


class StudyBenchmark:
    """A study's task, on one split's problems."""

    def __init__(self, study: Study, split: Split) -> None:
        evaluation = study.spec.evaluation
        problems = {"test": evaluation.test_problems, "validation": evaluation.validation_problems}
        if split not in problems:
            raise RequestError(f"--split: models are scored on {' or '.join(problems)} problems, not on {split!r}")
        task = build_task(study.spec.task, study.task)
        self._max_tokens = task.max_completion_tokens
        self.metadata = {
            "name": study.spec.task,
            "spec": study.task.model_dump(mode="json"),
            "split": split,
            "problems": problems[split],
        }
        self.columns = [f"format_{name}" for name in (*task.formats, "other")]
        name = lm_eval_name(study.task.kind)
        with quiet_lm_eval():  # it suggests metadata, which is being passed
            manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=self.metadata)
            self._task = manager.load([name])["tasks"][name]

    def score(self, lm: CountingHFLM, decoding: Decoding, seed: int) -> Measurement:
        """The model's accuracy with one decoding: avg@n over ``decoding.samples``, through lm-eval's ``repeats``.

        Prompts that ask for the same thing (one family) are right or wrong together: they count as one problem, with
        the mean of their scores, or intervals would be too narrow.
        """
        self._task.set_config("generation_kwargs", generation_options(decoding, self._max_tokens))
        self._task.set_config("repeats", decoding.samples)
        found, metrics, seconds, tokens = run_task(lm, self._task, seed)
        families: dict[str, list[float]] = {}
        for document in found:
            families.setdefault(document["doc"]["family"], []).append(float(document["accuracy"]))
        scores = [statistics.fmean(family) for family in families.values()]
        accuracy = mean_interval(scores)
        return Measurement(
            n=len(scores),
            samples=decoding.samples,
            accuracy=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            seconds=seconds,
            tokens=tokens,
            scores=scores,
            more={column: float(metrics[f"{column},every_sample"]) for column in self.columns},
        )


def generation_options(decoding: Decoding, max_tokens: int) -> dict[str, Any]:
    """A decoding as lm-eval's generation_kwargs: the whole distribution, until the end-of-sequence token."""
    options: dict[str, Any] = {"until": [], "max_gen_toks": max_tokens, "do_sample": decoding.temperature > 0}
    if decoding.temperature > 0:
        options |= {"temperature": decoding.temperature, "top_p": 1.0, "top_k": 0}
    return options


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """lm-eval's tasks by name: the project's own, YAML files given by path, and, if need be, all that lm-eval ships.

    Raises:
        RequestError: a name is none of these.
    """
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    if any(name not in manager.all_tasks and not Path(name).is_file() for name in names):
        manager = TaskManager(include_path=str(FOLDER))  # reads thousands of files, which takes seconds
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise RequestError(
                f"--tasks: lm-eval has no task, group or tag {name!r}, and there is no such YAML file "
                "(`lm_eval ls tasks` lists the names)"
            )
    with quiet_lm_eval():
        tasks: dict[str, Any] = manager.load(list(names))["tasks"]
    return tasks


def score_task(lm: CountingHFLM, task: Any, seed: int, limit: int | None) -> Measurement:
    """A model's primary metric (the task's first, under its first filter) with lm-eval's standard error."""
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    documents, metrics, seconds, tokens = run_task(lm, task, seed, limit=limit, bootstrap_iters=1000)
    key = next(key for key in metrics if "," in key and "_stderr," not in key)
    name, filter_name = key.split(",", 1)
    scores = [document[name] for document in documents if document["filter"] == filter_name and name in document]
    value, stderr = float(metrics[key]), metrics.get(f"{name}_stderr,{filter_name}")
    half = _Z95 * stderr if isinstance(stderr, float) else math.nan
    is_mean = all(isinstance(score, (int, float)) for score in scores)
    bounded = is_mean and all(0 <= score <= 1 for score in scores)
    return Measurement(
        n=len(scores),
        samples=task.get_config("repeats"),
        accuracy=value,
        low=max(value - half, 0.0) if bounded else value - half,
        high=min(value + half, 1.0) if bounded else value + half,
        seconds=seconds,
        tokens=tokens,
        scores=[float(score) for score in scores] if is_mean else [],
        more={"metric": key},
    )


def run_task(
    lm: CountingHFLM, task: Any, seed: int, *, limit: int | None = None, bootstrap_iters: int = 0
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any], float, int]:
    """lm-eval's ``evaluate`` of one task on one model.

    Args:
        seed: of everything that is drawn: few-shot examples have lm-eval's own seed, so that all models see the same.

    Returns:
        the documents with their metrics, in order; the task's metrics; seconds; tokens.
    """
    task.set_fewshot_seed(_FEWSHOT_SEED)
    torch.manual_seed(seed)
    tokens, started = lm.tokens, time.monotonic()
    with quiet_lm_eval():
        results = evaluate(lm, {"tasks": {task.task_name: task}}, limit=limit, bootstrap_iters=bootstrap_iters)
    seconds = time.monotonic() - started
    documents = sorted(results["samples"][task.task_name], key=lambda document: int(document["doc_id"]))
    return documents, results["results"][task.task_name], seconds, lm.tokens - tokens


def sampling_seed(*parts: str | int) -> int:
    """A seed for torch from what is being drawn: the same parts give the same draws, any others independent ones."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes a signed 64-bit number

"""Tasks as lm-eval runs them on one model: requests, HFLM's generate_until, the task's filter, process_results."""

import hashlib
import numbers
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from rlstride.config.study_file import Decoding
from rlstride.errors import RequestError
from rlstride.evaluation.completions import scores_each_completion
from rlstride.evaluation.exact import right_probabilities, right_shares
from rlstride.evaluation.lm import CountingHFLM, quiet_lm_eval
from rlstride.evaluation.metrics import averaged_samples, is_metric, metric_rows
from rlstride.evaluation.prompting import Prompting
from rlstride.evaluation.score_tables import Measurement
from rlstride.stats.intervals import Interval, columns_of, mean_interval
from rlstride.study.study import Study
from rlstride.tasks import Problem, Split, Task, build_task, draw_problems
from rlstride.tasks.asking import AS_TRAINED, Asking, restricted
from rlstride.tasks.lm_eval import FOLDER, lm_eval_name
from rlstride.tasks.lm_eval.functions import EVERY_SAMPLE, PROBLEM_SEED, config_of, score
from rlstride.tasks.problems import stops_of
from rlstride.tasks.rendering import Render, renderer

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


class StudyBenchmark:
    """A study's task, on one split's problems.

    Args:
        study: names task, number of problems and decodings.
        split: validation or test.
        asking: how its problems are put, if not by their own prompts.
    """

    def __init__(self, study: Study, split: Split, asking: Asking = AS_TRAINED) -> None:
        self._study, self._asking, evaluation = study, asking, study.spec.evaluation
        problems = {"test": evaluation.test_problems, "validation": evaluation.validation_problems}
        if split not in problems:
            raise RequestError(f"--split: models are scored on {' or '.join(problems)} problems, not on {split!r}")
        task = build_task(study.spec.task, study.task)
        self.scorer: Literal["sampled", "exact"] = evaluation.scorer
        self._max_tokens, self._stops = task.max_completion_tokens, stops_of(task)
        self.metadata = {
            "name": study.spec.task,
            "spec": study.task.model_dump(mode="json"),
            "split": split,
            "problems": problems[split],
        }
        if self.scorer == "exact":
            drawn = draw_problems(task, split, problems[split], seed=PROBLEM_SEED)
            self._listed = [
                _Listed(problem, restricted(_right_completions(task, problem), asking)) for problem in drawn
            ]
            return
        name = lm_eval_name(study.task.kind)
        with quiet_lm_eval():  # it suggests metadata, which is being passed
            manager = TaskManager(include_defaults=False, metadata=self.metadata)
            self._task = manager.load([config_of(name, task)])["tasks"][name]

    def key(self, model: str) -> dict[str, Any]:
        """All of a measurement of a model, by its name in the study, that is decided here, as JSON holds it."""
        chat = self._study.chat(model)
        scorer = {} if self.scorer == "sampled" else {"scorer": self.scorer}
        return {"task": self.metadata, **scorer, **({} if chat is None else {"chat": chat.model_dump()})}

    def _render(self, lm: CountingHFLM, model: str) -> Render:
        """From a problem's prompt to what the model reads."""
        asking, spoken = self._asking, renderer(lm.tokenizer, self._study.chat(model))
        return lambda prompt: spoken(asking.put(prompt)) + asking.begins

    def score_all(
        self,
        lm: CountingHFLM,
        model: str,
        decodings: Mapping[str, tuple[Decoding, int]],
        with_texts: bool = False,
    ) -> Iterator[tuple[str, Measurement]]:
        """The model's accuracy with each of several decodings, which exact scoring finds together.

        Args:
            lm: the model.
            model: its name in the study, which says how it is spoken to; another name: prompts stay bare.
            decodings: by name, each with the seed of its sampling.
            with_texts: whether prompts and completions are kept.
        """
        if self.scorer == "exact":
            found = self._score_exactly(lm, model, [decoding for decoding, _ in decodings.values()], with_texts)
            yield from zip(decodings, found, strict=True)
            return
        for name, (decoding, seed) in decodings.items():
            yield name, self.score(lm, model, decoding, seed, with_texts)

    def _score_exactly(
        self, lm: CountingHFLM, model: str, decodings: Sequence[Decoding], with_texts: bool
    ) -> list[Measurement]:
        started, render, among = time.monotonic(), self._render(lm, model), self._asking.among
        find = right_probabilities if among is None else partial(right_shares, among=among)
        found = find(
            lm,
            [render(each.problem.prompt) for each in self._listed],
            [each.right for each in self._listed],
            temperatures=[decoding.temperature for decoding in decodings],
            max_tokens=self._max_tokens,
            stops=self._stops,
        )
        seconds = (time.monotonic() - started) / len(decodings)
        return [
            _exact_measurement(self._listed, listed, unlisted, seconds, with_texts)
            for listed, unlisted in zip(found.listed.T.tolist(), found.unlisted.T.tolist(), strict=True)
        ]

    def score(
        self, lm: CountingHFLM, model: str, decoding: Decoding, seed: int, with_texts: bool = False
    ) -> Measurement:
        """The model's accuracy with one decoding: avg@n over ``decoding.samples``, through lm-eval's ``repeats``.

        Prompts that ask for the same thing (one family) are right or wrong together: they count as one problem, with
        the mean of their scores, or intervals would be too narrow.
        """
        if self.scorer == "exact":
            return self._score_exactly(lm, model, [decoding], with_texts)[0]
        self._task.set_config("generation_kwargs", generation_options(decoding, self._max_tokens, self._stops))
        self._task.set_config("repeats", decoding.samples)
        render = self._render(lm, model)
        self._task.set_config("doc_to_text", lambda document: render(document["prompt"]))
        self._task.set_config("process_results", partial(score, begins=self._asking.begins))
        found = run_task(lm, self._task, seed)
        scores = _means(
            (document["doc"]["family"] for document in found.documents),
            (float(document["accuracy"]) for document in found.documents),
        )
        accuracy = mean_interval(scores)
        return Measurement(
            n=len(scores),
            samples=averaged_samples(found.documents),
            accuracy=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            seconds=found.seconds,
            tokens=found.tokens,
            scores=scores,
            more=_further(found.metrics),
            texts=document_texts(found.documents) if with_texts else [],
        )


@dataclass(frozen=True)
class _Listed:
    """A problem, and all of its right completions."""

    problem: Problem
    right: Sequence[str]


def _right_completions(task: Task, problem: Problem) -> Sequence[str]:
    found = task.right_completions(problem)
    if found is None:
        raise RequestError(f"evaluation: scorer: exact: {task.name} lists no right completions; take scorer: sampled")
    return found


def _exact_measurement(
    problems: Sequence[_Listed], listed: Sequence[float], unlisted: Sequence[float], seconds: float, with_texts: bool
) -> Measurement:
    """One decoding's; the arguments are by problem."""
    families = [each.problem.family or each.problem.prompt for each in problems]
    scores = _means(families, listed)
    accuracy = mean_interval(scores)
    texts = [
        {
            "doc_id": index,
            "prompt": each.problem.prompt,
            "target": each.problem.answer,
            "right_completions": list(each.right),
            "scores": {"accuracy": score},
        }
        for index, (each, score) in enumerate(zip(problems, listed, strict=True))
    ]
    return Measurement(
        n=len(scores),
        samples=0,
        accuracy=accuracy.value,
        low=accuracy.low,
        high=accuracy.high,
        seconds=seconds,
        tokens=0,
        scores=scores,
        more={"unlisted": statistics.fmean(_means(families, unlisted))},
        texts=texts if with_texts else [],
    )


def _means(families: Iterable[str], scores: Iterable[float]) -> list[float]:
    """Each family's mean score, in the order in which families first stand."""
    found: dict[str, list[float]] = {}
    for family, each in zip(families, scores, strict=True):
        found.setdefault(family, []).append(each)
    return [statistics.fmean(family) for family in found.values()]


def _further(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """All that a task measures beside accuracy: a column each."""
    own = {key.removesuffix(f",{EVERY_SAMPLE}"): key for key in metrics if key.endswith(f",{EVERY_SAMPLE}")}
    return {name: float(metrics[key]) for name, key in own.items() if name != "accuracy" and is_metric(key)}


def generation_options(decoding: Decoding, max_tokens: int, stops: Sequence[str] = ()) -> dict[str, Any]:
    """A decoding as lm-eval's generation_kwargs: the whole distribution, until the end token or one of some texts."""
    options: dict[str, Any] = {"until": list(stops), "max_gen_toks": max_tokens, "do_sample": decoding.temperature > 0}
    if decoding.temperature > 0:
        options |= {"temperature": decoding.temperature, "top_p": 1.0, "top_k": 0}
    return options


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


def sampling_seed(*parts: str | int) -> int:
    """A seed for torch from what is being drawn: the same parts give the same draws, any others independent ones."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes a signed 64-bit number

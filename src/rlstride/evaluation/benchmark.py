"""A study's task as a benchmark: every model on the same problems, drawn through lm-eval or read exactly."""

import hashlib
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lm_eval.tasks import TaskManager

from rlstride.config.study_file import Decoding
from rlstride.errors import RequestError
from rlstride.evaluation.exact import right_probabilities, right_shares
from rlstride.evaluation.lm import CountingHFLM, quiet_lm_eval
from rlstride.evaluation.lm_eval_tasks import document_texts, run_task
from rlstride.evaluation.metrics import averaged_samples, is_metric
from rlstride.evaluation.score_tables import Measurement
from rlstride.stats.intervals import mean_interval
from rlstride.study.study import Study
from rlstride.tasks import Problem, Split, Task, build_task, draw_problems
from rlstride.tasks.asking import AS_TRAINED, Asking, restricted
from rlstride.tasks.lm_eval import lm_eval_name
from rlstride.tasks.lm_eval.functions import EVERY_SAMPLE, PROBLEM_SEED, config_of, score
from rlstride.tasks.problems import stops_of
from rlstride.tasks.rendering import Render, renderer


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


def sampling_seed(*parts: str | int) -> int:
    """A seed for torch from what is being drawn: the same parts give the same draws, any others independent ones."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes a signed 64-bit number

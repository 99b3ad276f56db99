"""lm-eval's tasks with every completion scored by itself, whatever a task's own filter keeps of several."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from lm_eval.api.filter import FilterEnsemble
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.filters.selection import MajorityVoteFilter, TakeKFilter
from numpy.typing import ArrayLike

from rlstride.arrays import Floats
from rlstride.errors import RequestError
from rlstride.generation import settled_sampling


def pass_at_k(right: ArrayLike, samples: int, k: int) -> Floats:
    """How likely at least one of k completions of a problem is right: 1 - C(n - c, k) / C(n, k).

    Unbiased, where 1 - (1 - c/n)^k is not: it counts the sets of k among the n completions that hold no right one
    (arXiv 2107.03374, equation 1).

    Args:
        right: c, the right completions of each problem, (problems,).
        samples: n, the completions of each problem.
        k: at most n.

    Returns:
        (problems,), each in [0, 1].

    Raises:
        ValueError: k is not between 1 and n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be told from {samples} completions")
    counts = np.asarray(right, dtype=int)
    wrong = [math.comb(samples - int(count), k) for count in counts.ravel()]
    return 1 - np.array([each / math.comb(samples, k) for each in wrong], dtype=np.float64)


class EachCompletion:
    """A task's pipeline of filters, run on every completion of a problem as if it were the only one.

    What chooses among completions (take_first, take_first_k) then has one to choose from.
    """

    def __init__(self, own: FilterEnsemble) -> None:
        self.name = own.name
        self._filters = [partial(TakeKFilter, k=1) if _class_of(each) is TakeKFilter else each for each in own.filters]

    def apply(self, instances: Sequence[Instance]) -> None:
        """Leaves, of each instance, a list with what the filters make of each of its responses."""
        left: Any = [[response] for instance in instances for response in instance.resps]
        documents = [instance.doc for instance in instances for _ in instance.resps]
        for make in self._filters:
            left = make().apply(left, documents)
        filtered = iter(left)
        for instance in instances:
            instance.filtered_resps[self.name] = [next(filtered) for _ in instance.resps]


def score_each_completion(name: str, task: Any, completions: int, pass_at: Sequence[int]) -> None:
    """Has lm-eval draw so many completions of each problem, and score each as it would score a single one.

    A document's metric is then a list with a score for each completion. A task whose answers are scored by likelihood,
    or whose metrics are of all problems at once, has no such scores: it stays as it is where one completion is asked
    for.

    Args:
        name: the task's.
        task: lm-eval's, its generation arguments settled.
        completions: n.
        pass_at: the values of k that are asked for.

    Raises:
        RequestError: several completions, or pass@k, of a task that cannot have them.
    """
    reason = _why_not(task, completions)
    if reason is None:
        _score_each(task, completions)
    elif completions > 1 or pass_at:
        raise RequestError(f"{name}: avg@n and pass@k score completions one by one, but {reason}")


def scores_each_completion(task: Any) -> bool:
    """Whether :func:`score_each_completion` changed the task."""
    return any(isinstance(each, EachCompletion) for each in getattr(task, "_filters", []))


def _why_not(task: Any, completions: int) -> str | None:
    if task.OUTPUT_TYPE != "generate_until":
        return "its answers are scored by likelihood"
    if task.aggregation() and mean not in task.aggregation().values():
        return f"{', '.join(task.aggregation())} is of all problems at once"
    if all(_votes(each) for each in task._filters):
        return "its filter takes the majority of them"
    if completions > 1 and not settled_sampling(task.get_config("generation_kwargs") or {})["do_sample"]:
        return "its file decodes greedily, and all of them would be the same: give a temperature above 0"
    return None


def _score_each(task: Any, completions: int) -> None:
    score, aggregation = task.process_results, task.aggregation()
    task.set_config("repeats", completions)
    task._filters = [EachCompletion(each) for each in task._filters if not _votes(each)]

    def scores_of_each(document: Mapping[str, Any], results: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        (answers,) = results
        found = [score(document, [answer]) for answer in answers]
        return {metric: [each[metric] for each in found] for metric in found[0]}

    task.process_results = scores_of_each
    # lm-eval takes the mean of a metric that the task's file does not list.
    task.aggregation = lambda: defaultdict(
        lambda: partial(_over_all, mean), {metric: partial(_over_all, own) for metric, own in aggregation.items()}
    )


def _over_all(aggregate: Callable[[list[Any]], float], scores: Sequence[Sequence[Any]]) -> float:
    """lm-eval's aggregation over all completions of all problems."""
    return aggregate(list(chain.from_iterable(scores)))


def _votes(ensemble: FilterEnsemble) -> bool:
    return any(_class_of(each) is MajorityVoteFilter for each in ensemble.filters)


def _class_of(make: Any) -> Any:
    return make.func if isinstance(make, partial) else make

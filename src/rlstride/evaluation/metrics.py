"""Every metric of a task under each of its filters, with its interval, from what lm-eval logs of one model."""

import math
import numbers
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlstride.arrays import Floats
from rlstride.evaluation.completions import pass_at_k
from rlstride.stats.intervals import Interval, mean_interval

_Z95 = 1.959964
Row = dict[str, Any]


def metric_rows(
    documents: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    higher_is_better: Mapping[str, bool],
    pass_at: Sequence[int] | None = None,
) -> list[Row]:
    """Every metric of a task under every filter.

    Args:
        documents: as lm-eval logs them, in order; each once for every filter.
        values: the metrics and their standard errors, by "metric,filter".
        higher_is_better: by metric, where the task says so.
        pass_at: where every completion was scored by itself, the values of k of pass@k; else None.

    Returns:
        metric, filter, measure, value, low, high, stderr (NaN where there is none), higher_is_better, n, samples and
        scores (of problems; empty if the metric is no mean over them) of each. The measure is avg@n of a mean over
        problems and pass@k of completions that are right or wrong; it is empty where lm-eval aggregates otherwise.
    """
    rows = []
    for key in filter(is_metric, values):
        name, filter_name = key.split(",", 1)
        found = [each for each in documents if each["filter"] == filter_name and name in each]
        samples = averaged_samples(found) if found else 0
        about: Row = {"metric": name, "filter": filter_name, "higher_is_better": higher_is_better.get(name)}
        about |= {"n": len(found), "samples": samples}
        value, stderr = _as_float(values[key]), _as_float(values.get(f"{name}_stderr,{filter_name}"))
        each = None if pass_at is None else _scores_of_completions(found, name, value)
        if each is None or pass_at is None:
            scores = [] if pass_at is not None else [_as_float(document[name]) for document in found]
            rows.append(about | _aggregated(scores, value, stderr, samples))
        else:
            rows += [about | measured for measured in _measures(each, pass_at)]
    return rows


def averaged_samples(documents: Sequence[Mapping[str, Any]]) -> int:
    """How many completions the score of each document is made of: those that its filter left of all that were drawn.

    lm-eval's filter take_first leaves one of any number of repeats, a majority vote one answer, take_first_k k of them.

    Args:
        documents: as lm-eval logs them, of one filter. Where they differ, the fewest count.
    """
    return min(
        min(len(left), len(drawn)) if isinstance(left, list) else 1
        for document in documents
        for left, drawn in zip(document["filtered_resps"], document["resps"], strict=True)
    )


def is_metric(key: str) -> bool:
    """Whether a key of lm-eval's results is a metric's: "metric,filter"."""
    return "," in key and "_stderr," not in key


def _aggregated(scores: list[float], value: float, stderr: float, samples: int) -> Row:
    """lm-eval's own figure, with an interval from its standard error."""
    half = _Z95 * stderr
    is_mean = bool(scores) and math.isclose(statistics.fmean(scores), value, abs_tol=1e-9)  # never so with a NaN
    bounded = is_mean and all(0 <= score <= 1 for score in scores)
    return {
        "measure": f"avg@{samples}" if is_mean else "",
        "value": value,
        "low": max(value - half, 0.0) if bounded else value - half,
        "high": min(value + half, 1.0) if bounded else value + half,
        "stderr": stderr,
        "scores": scores if is_mean else [],
    }


def _measures(each: Floats, pass_at: Sequence[int]) -> list[Row]:
    """avg@n and, of completions that are right or wrong, pass@k, from scores (problems, n)."""
    samples = each.shape[1]
    by_measure = {f"avg@{samples}": each.mean(axis=1)}
    if np.isin(each, (0, 1)).all():
        by_measure |= {f"pass@{k}": pass_at_k(each.sum(axis=1), samples, k) for k in pass_at}
    return [_measured(measure, scores.tolist()) for measure, scores in by_measure.items()]


def _measured(measure: str, scores: list[float]) -> Row:
    """The mean over problems, with its bootstrap interval."""
    found: Interval = mean_interval(scores)
    ends = {"value": found.value, "low": found.low, "high": found.high, "stderr": math.nan}
    return {"measure": measure, **ends, "scores": scores}


def _scores_of_completions(documents: Sequence[Mapping[str, Any]], name: str, value: float) -> Floats | None:
    """A metric's score of every completion, (problems, n); None where it is no mean over them."""
    scores = np.array([[_as_float(score) for score in document[name]] for document in documents])
    return scores if scores.size and math.isclose(scores.mean(), value, abs_tol=1e-9) else None


def _as_float(value: Any) -> float:
    """NaN for what is no number, such as lm-eval's "N/A"."""
    return float(value) if isinstance(value, (numbers.Real, np.bool_)) else math.nan

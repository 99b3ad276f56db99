"""What a benchmark measured: its tables, and the journal that an interrupted run goes on from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from rlstride.atomic_files import atomic_file
from rlstride.config.study_file import StudyFile
from rlstride.ledger import append
from rlstride.outputs import Recognise, has_columns
from rlstride.study.plan import drift_steps, edited_steps, edits_of_step

ROW_KEYS = ("study", "model", "algorithm", "seed", "variant", "step", "task", "split", "decoding")
_HOLDS_PROBLEMS = has_columns("variant", "problem", "score")
_HOLDS_METRICS = has_columns("variant", "metric", "filter", "higher_is_better")


@dataclass(frozen=True)
class Measurement:
    """One model's score on one task with one decoding.

    Attributes:
        n: problems.
        samples: completions that each problem's score is the mean of.
        accuracy, low, high: mean over problems, and its 95 % interval.
        seconds: of generating and scoring.
        tokens: generated, end-of-sequence tokens included.
        scores: each problem's mean over its samples, in the task's order; empty if the metric is no mean over problems.
        more: further columns of the row, such as format_careful.
        metrics: all of a task's, under all of its filters, a row each, with the scores of problems.
        texts: what each document's model was given and answered, where that is asked for.
    """

    n: int
    samples: int
    accuracy: float
    low: float
    high: float
    seconds: float
    tokens: int
    scores: list[float]
    more: dict[str, float | str] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The measurement's columns of the accuracy table."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        for beside in ("scores", "more", "metrics", "texts"):
            del columns[beside]
        return columns | self.more


@dataclass(frozen=True)
class Row:
    """A measurement and what it is of.

    Attributes:
        labels: by ROW_KEYS.
        measurement: what was found.
        how: further columns that say how it was asked for, such as fewshot.
    """

    labels: Mapping[str, str | int]
    measurement: Measurement
    how: Mapping[str, str | int | bool] = field(default_factory=dict)


class Journal:
    """Measurements of a run that has not written its tables yet, one JSON line each, beside the table to come."""

    def __init__(self, out: Path) -> None:
        self._file = out.with_name(f".{out.stem}.unfinished.jsonl")
        self._known: dict[str, Measurement] = {}
        if self._file.is_file():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # torn by a kill: that one is measured again
                    continue
                key = entry.pop("key")
                self._known[key] = Measurement(**entry)

    def find(self, key: str | None) -> Measurement | None:
        """The measurement that was made under a key."""
        return self._known.get(key) if key else None

    def add(self, key: str | None, measurement: Measurement) -> None:
        """Keeps a measurement; without a key (a model whose weights have no digest) it is not kept."""
        if key:
            append(self._file, {"key": key, **asdict(measurement)})

    def remove(self) -> None:
        """Forgets everything: the tables are written."""
        self._file.unlink(missing_ok=True)


def measurement_key(**all_that_decides: Any) -> str:
    """A digest of everything that a measurement depends on."""
    return hashlib.sha256(json.dumps(all_that_decides, sort_keys=True, default=str).encode()).hexdigest()


def write_tables(out: Path, rows: Sequence[Row], with_texts: bool = False) -> None:
    """Writes ``out`` (one line for each row), and beside it what does not fit into one.

    ``*-problems`` has a line for each row and problem; ``*-metrics``, of lm-eval's tasks, for each row, metric and
    filter; ``*-samples.jsonl``, where texts are asked for, for each row and document.
    """
    accuracy = pd.DataFrame([{**row.labels, **row.measurement.row(), **row.how} for row in rows])
    problems = pd.DataFrame(
        [
            {**_model_and_task(row), "problem": problem, "score": score}
            for row in rows
            for problem, score in enumerate(row.measurement.scores)
        ],
        columns=["variant", "step", "task", "decoding", "problem", "score"],
    )
    metrics = [{**row.labels, **metric, **row.how} for row in rows for metric in row.measurement.metrics]
    for metric in metrics:
        del metric["scores"]  # those of problems: a table of their own has the primary metric's
    frames = {metrics_file(out): pd.DataFrame(metrics).astype({"higher_is_better": "boolean"})} if metrics else {}
    if with_texts:
        with atomic_file(samples_file(out)) as partial:
            lines = [{**_model_and_task(row), **text, **row.how} for row in rows for text in row.measurement.texts]
            partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    else:
        samples_file(out).unlink(missing_ok=True)  # of a table that this one replaces
    if not metrics:
        metrics_file(out).unlink(missing_ok=True)
    write_frames({**frames, problems_file(out): problems, out: accuracy})


def _model_and_task(row: Row) -> dict[str, str | int]:
    return {key: row.labels[key] for key in ("variant", "step", "task", "decoding")}


def write_frames(frames: Mapping[Path, pd.DataFrame]) -> None:
    """Writes Parquet files one after the other, each whole or not at all: the last is there when all are."""
    for path, frame in frames.items():
        with atomic_file(path) as partial:
            frame.to_parquet(partial, index=False)


def read_table(file: Path) -> pd.DataFrame:
    """The rows of a table; none where it is not there."""
    return pd.read_parquet(file) if file.is_file() else pd.DataFrame()


def asked_edits(edits: pd.DataFrame, spec: StudyFile | None) -> pd.DataFrame:
    """The rows of a table of edited models that a study asks for: an earlier one may have asked for others.

    Args:
        edits: with columns variant and step; the full run at the edited steps is in it too.
        spec: the study; None keeps every row.
    """
    if spec is None or edits.empty:
        return edits
    asked = {(name, step) for step in edited_steps(spec) for name in (*edits_of_step(spec, step), "full")}
    return edits[[key in asked for key in zip(edits["variant"], edits["step"], strict=True)]]


def asked_drift(drift: pd.DataFrame, spec: StudyFile | None) -> pd.DataFrame:
    """The rows of a table of drifts, or of their tokens, that a study asks for.

    Args:
        drift: with columns variant and step.
        spec: the study; None keeps every row.
    """
    if spec is None or drift.empty:
        return drift
    steps = drift_steps(spec)
    kept = drift["variant"].isin(["base", "checkpoint"]) & drift["step"].isin([0, *steps])
    edited = drift["variant"].isin(spec.drift.variants) & (drift["step"] == spec.training.steps)
    return drift[kept | edited] if steps else drift.iloc[:0]


def at_last_step(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """The rows of each group at its own last step, such as of each variant: others are about steps on the way."""
    return rows[rows["step"] == rows.groupby(list(keys))["step"].transform("max")]


def files_beside(out: Path) -> dict[Path, Recognise]:
    """What may be written with a table of scores, and how each is told from somebody else's file."""
    return {problems_file(out): _HOLDS_PROBLEMS, metrics_file(out): _HOLDS_METRICS, samples_file(out): _holds_samples}


def _holds_samples(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as stream:
            first = json.loads(stream.readline() or "{}")
    except (OSError, ValueError):
        return False
    return not first or {"variant", "task"} <= first.keys()


def problems_file(out: Path) -> Path:
    """Where the scores of single problems lie: accuracy-problems.parquet beside accuracy.parquet."""
    return out.with_name(f"{out.stem}-problems{out.suffix}")


def metrics_file(out: Path) -> Path:
    """Where all metrics of lm-eval's tasks lie: accuracy-metrics.parquet beside accuracy.parquet."""
    return out.with_name(f"{out.stem}-metrics{out.suffix}")


def samples_file(out: Path) -> Path:
    """Where prompts and completions lie: accuracy-samples.jsonl beside accuracy.parquet."""
    return out.with_name(f"{out.stem}-samples.jsonl")

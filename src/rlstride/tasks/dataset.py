"""Problems of a data set: its rows as prompts, and the answers that a verifier expects.

Rows come from local JSONL, CSV or Parquet files or from the Hugging Face hub. A prompt stands in one split alone: one
of test is taken out of validation and train, one of validation out of train, and repeated rows count once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from rlstride.config.tasks import DatasetSpec
from rlstride.errors import RequestError, first_line
from rlstride.tasks.problems import SPLITS, Problem, Split, split_of
from rlstride.tasks.verifiers import Verifier, verifier_named

_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".jsonl": lambda file: pd.read_json(file, lines=True, dtype=False, convert_dates=False),
    ".json": lambda file: pd.read_json(file, dtype=False, convert_dates=False),
    ".csv": lambda file: pd.read_csv(file, dtype=str, keep_default_na=False),
    ".parquet": pd.read_parquet,
}
_VALIDATION = "validation/"  # before a prompt, where a tenth of train is drawn by its hash
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class DatasetTask:
    """A data set as a task.

    Attributes:
        name: in tables.
        spec: its entry of tasks.yaml.
    """

    name: str
    spec: DatasetSpec

    @property
    def alphabet(self) -> str:
        """Of no characters in particular."""
        return ""

    @property
    def max_prompt_tokens(self) -> int:
        return self.spec.max_prompt_tokens

    @property
    def max_completion_tokens(self) -> int:
        return self.spec.max_completion_tokens

    @property
    def formats(self) -> tuple[str, ...]:
        return ()

    def draw(self, rng: Any) -> Problem:
        problem: Problem = rng.choice(self.listed(rng.choice(SPLITS)))
        return problem

    def listed(self, split: Split) -> Sequence[Problem]:
        return self._problems[split]

    def demonstrate(self, problem: Problem, rng: Any) -> str:
        return self.solution(problem)

    def solution(self, problem: Problem) -> str:
        found = self._solutions.get(problem.prompt)
        if found is None:
            raise RequestError(f"tasks.yaml: {self.name}: solution: supervised runs need one; state a template")
        return found

    def format_of(self, completion: str) -> str:
        return "other"

    def extract_answer(self, completion: str) -> str | None:
        return self._verifier.extract(completion)

    def verify(self, problem: Problem, completion: str) -> bool:
        return self._verifier.accepts(completion, problem.answer)

    def right_completions(self, problem: Problem) -> Sequence[str] | None:
        return self._verifier.right(problem.answer) if self._verifier.right else None

    def measure(self, problem: Problem, completion: str) -> dict[str, float]:
        return {"answered": float(self.extract_answer(completion) is not None)}

    @cached_property
    def _verifier(self) -> Verifier:
        return verifier_named(self.spec.verifier, self.spec.pattern, f"tasks.yaml: {self.name}: verifier")

    @cached_property
    def _rows(self) -> dict[Split, list[_Row]]:
        spec, where = self.spec, f"tasks.yaml: {self.name}"
        if not spec.splits:
            return {"train": _read(spec, spec.source, where)}
        return {split: _read(spec, place, where) for split, place in spec.splits.items()}

    @cached_property
    def _rendered(self) -> dict[Split, dict[str, tuple[Problem, str | None]]]:
        """Problems and their solutions by prompt, each prompt in one split."""
        prompt, answer, solution = (
            _template(text, f"tasks.yaml: {self.name}")
            for text in (self.spec.prompt, self.spec.answer, self.spec.solution)
        )
        found: dict[Split, dict[str, tuple[Problem, str | None]]] = {split: {} for split in SPLITS}
        for own, rows in self._rows.items():
            for row in rows:
                problem = Problem(prompt(row) or "", answer(row) or "")
                split = own if self.spec.splits else split_of(problem.prompt)
                if split == "train" and "validation" not in self.spec.splits and self.spec.splits:
                    split = "validation" if split_of(_VALIDATION + problem.prompt) == "validation" else "train"
                found[split].setdefault(problem.prompt, (problem, solution(row)))
        for later in found["test"]:
            found["validation"].pop(later, None)
            found["train"].pop(later, None)
        for later in found["validation"]:
            found["train"].pop(later, None)
        for split, problems in found.items():
            if not problems:
                raise RequestError(f"tasks.yaml: {self.name}: there is no {split} problem in {self.spec.source}")
        return found

    @cached_property
    def _problems(self) -> dict[Split, list[Problem]]:
        return {split: [problem for problem, _ in found.values()] for split, found in self._rendered.items()}

    @cached_property
    def _solutions(self) -> dict[str, str | None]:
        return {prompt: each[1] for found in self._rendered.values() for prompt, each in found.items()}


@lru_cache(maxsize=8)
def _built(name: str, spec: str) -> DatasetTask:
    return DatasetTask(name, DatasetSpec.model_validate_json(spec))


def build(name: str, spec: DatasetSpec) -> DatasetTask:
    """The task that an entry of tasks.yaml describes; one in each process, as its rows take time to read."""
    return _built(name, spec.model_dump_json())


def _read(spec: DatasetSpec, place: str, where: str) -> list[_Row]:
    """The rows of a file, or of a split on the hub.

    Raises:
        RequestError: there is no such thing, or it cannot be read.
    """
    file = Path(place)
    if file.suffix in _READERS:
        try:
            return _rows_of(_READERS[file.suffix](file).to_dict("records"))
        except FileNotFoundError as error:
            raise RequestError(f"{where}: {file}: there is no such file") from error
        except (OSError, ValueError) as error:
            raise RequestError(f"{where}: {file}: cannot be read ({first_line(error)})") from error
    from datasets import load_dataset

    split = place if spec.splits else "train"
    try:
        loaded = load_dataset(spec.source, spec.subset, split=split, revision=spec.revision)
    except Exception as error:  # the hub's errors are of a dozen kinds
        raise RequestError(f"{where}: {spec.source}: the data set cannot be read ({first_line(error)})") from error
    return _rows_of(loaded)


def _rows_of(records: Iterable[Mapping[Any, Any]]) -> list[_Row]:
    return [{str(name): value for name, value in record.items()} for record in records]


def _template(text: str | None, where: str) -> Callable[[_Row], str | None]:
    """A template as a function of a row; undefined columns are errors. Templates cannot reach beyond their row."""
    if text is None:
        return lambda row: None
    try:
        template = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    except TemplateError as error:
        raise RequestError(f"{where}: the template {text!r} is wrong: {first_line(error)}") from error

    def render(row: _Row) -> str:
        try:
            return template.render(row)
        except TemplateError as error:
            raise RequestError(
                f"{where}: the template {text!r} does not fit a row: {first_line(error)}; columns: {', '.join(row)}"
            ) from error

    return render

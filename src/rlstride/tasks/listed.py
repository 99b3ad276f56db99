"""Tasks whose problems are listed: prompts made of rows by templates, each in one split alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from rlstride.errors import RequestError, first_line
from rlstride.tasks.math_answers import MathVerifier
from rlstride.tasks.problems import Problem, Split, cut
from rlstride.tasks.verifiers import Verifier

PRECEDENCE: tuple[Split, ...] = ("test", "validation", "train")  # a prompt of several splits stays in the first
Columns = Mapping[str, Any]
_Row = TypeVar("_Row")


class ListedSpec(Protocol):
    """What the entries of tasks.yaml have in common for these tasks."""

    @property
    def solution(self) -> str | None:
        """The template of a right completion."""
        ...

    @property
    def stop(self) -> list[str]:
        """Texts that end a completion."""
        ...

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """Tokens of a completion, its end included."""
        ...


@dataclass(frozen=True)
class Row:
    """A problem and the columns that it is made of."""

    problem: Problem
    columns: Columns


@dataclass(frozen=True)
class ListedTask(ABC):
    """What these tasks have in common.

    Attributes:
        name: in tables.
        spec: its entry of tasks.yaml.
    """

    name: str
    spec: ListedSpec

    @abstractmethod
    def rows(self, split: Split) -> Mapping[str, Row]:
        """The rows of a split by their prompts, at least one."""

    @property
    @abstractmethod
    def verifier(self) -> Verifier | MathVerifier:
        """Finds the answer in a completion, and compares it with what is expected."""

    @property
    def where(self) -> str:
        """Where its entry stands, which errors name."""
        return f"tasks.yaml: {self.name}"

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
    def stop(self) -> list[str]:
        """Texts that end a completion; the verifier never sees them, nor what comes after."""
        return self.spec.stop

    @property
    def formats(self) -> tuple[str, ...]:
        return ()

    def draw(self, rng: Any) -> Problem:
        """A problem of test, the split that every other depends on."""
        problem: Problem = rng.choice(self.listed("test"))
        return problem

    def listed(self, split: Split) -> Sequence[Problem]:
        if split not in self._listed:
            rows = self.rows(split)
            self._listed[split] = [row.problem for row in rows.values()]
            if self.spec.solution is not None:
                self.solution(self._listed[split][0])  # what is wrong with the template is said before any training
        return self._listed[split]

    def demonstrate(self, problem: Problem, rng: Any) -> str:
        return self.solution(problem)

    def solution(self, problem: Problem) -> str:
        found = self._solution(self.row_of(problem).columns)
        if found is None:
            raise RequestError(f"{self.where}: solution: supervised runs and examples need one; state a template")
        return found

    def format_of(self, completion: str) -> str:
        return "other"

    def expected(self, problem: Problem) -> str:
        """What the verifier compares with."""
        return problem.answer

    def extract_answer(self, completion: str) -> str | None:
        return self.verifier.extract(cut(completion, self.stop))

    def verify(self, problem: Problem, completion: str) -> bool:
        return self.verifier.accepts(cut(completion, self.stop), self.expected(problem))

    def right_completions(self, problem: Problem) -> Sequence[str] | None:
        return None if self.verifier.right is None else self.verifier.right(self.expected(problem))

    def measure(self, problem: Problem, completion: str) -> dict[str, float]:
        return self.verifier.figures(cut(completion, self.stop), self.expected(problem))

    def row_of(self, problem: Problem) -> Row:
        """The row that a problem is made of.

        Raises:
            RequestError: it is none of this task's.
        """
        for split in PRECEDENCE:
            if (row := self.rows(split).get(problem.prompt)) is not None:
                return row
        raise RequestError(f"{self.where}: none of its problems has the prompt {problem.prompt!r}")

    @cached_property
    def _listed(self) -> dict[Split, Sequence[Problem]]:
        return {}

    @cached_property
    def _solution(self) -> Callable[[Columns], str | None]:
        return template(self.spec.solution, self.where)


def is_asked_for(text: str | None, where: str) -> Callable[[Columns], bool]:
    """Whether a template says True of a row; without one all rows are asked for.

    Raises:
        RequestError: it says something else than True or False.
    """
    condition = template(text, where)

    def holds(row: Columns) -> bool:
        said = condition(row)
        if said not in (None, "True", "False"):
            raise RequestError(f"{where}: where: the template {text!r} says {said!r} of a row, not True or False")
        return said != "False"

    return holds


def without(rows: Mapping[str, _Row], taken: Iterable[Mapping[str, object]]) -> dict[str, _Row]:
    """The rows whose prompts do not stand in splits that have them already."""
    others = list(taken)
    return {prompt: row for prompt, row in rows.items() if not any(prompt in other for other in others)}


def template(text: str | None, where: str) -> Callable[[Columns], str | None]:
    """A template as a function of a row; undefined columns are errors. Templates cannot reach beyond their row."""
    if text is None:
        return lambda row: None
    try:
        parsed = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    except TemplateError as error:
        raise RequestError(f"{where}: the template {text!r} is wrong: {first_line(error)}") from error

    def render(row: Columns) -> str:
        try:
            return parsed.render(row)
        except TemplateError as error:
            raise RequestError(
                f"{where}: the template {text!r} does not fit a row: {first_line(error)}; columns: {', '.join(row)}"
            ) from error

    return render

"""What every task offers, and how its problems are split.

A problem belongs to exactly one split, decided by a hash of its prompt (or of its family, which several prompts
share). Pretraining, RL and evaluation all draw from here, so no test problem can be seen in training, whatever the
seeds.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rlstride.errors import RequestError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_DRAWS_IN_VAIN = 10_000  # draws in a row without a new problem, before a split counts as exhausted
# Shares of the problem space in per cent. Training gets most: RL and pretraining draw from it without end.
_UPPER_BOUNDS: dict[Split, int] = {"train": 80, "validation": 90, "test": 100}


@dataclass(frozen=True)
class Problem:
    """A prompt as the model reads it, and the answer that the verifier expects."""

    prompt: str
    answer: str
    family: str = ""  # what decides the split in place of the prompt, where several prompts ask for the same thing


class Task(Protocol):
    """A family of problems with a verifier. Implementations live in one module each."""

    @property
    def name(self) -> str:
        """The task's name in tables."""
        ...

    @property
    def alphabet(self) -> str:
        """Every character that prompts and completions are made of."""
        ...

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """Tokens of the longest completion, the end-of-sequence token included."""
        ...

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the solution formats in the pretraining mixture."""
        ...

    def draw(self, rng: random.Random) -> Problem:
        """A problem of any split."""
        ...

    def listed(self, split: Split) -> Sequence[Problem] | None:
        """All problems of a split, each once; None of a task that makes them without end."""
        ...

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """A completion in a solution format drawn from the pretraining mixture."""
        ...

    def solution(self, problem: Problem) -> str:
        """A completion that solves the problem, in the task's right solution format: what supervised controls see."""
        ...

    def format_of(self, completion: str) -> str:
        """The solution format that a completion is written in, or ``"other"``."""
        ...

    def extract_answer(self, completion: str) -> str | None:
        """The final answer stated in a completion, or None where it states none."""
        ...

    def verify(self, problem: Problem, completion: str) -> bool:
        """Whether the completion solves the problem: the reward of RL and the score of the benchmark."""
        ...

    def right_completions(self, problem: Problem) -> Sequence[str] | None:
        """All completions that the verifier accepts, as texts; None where they are without number.

        Exact scoring reads them (rlstride.evaluation.exact): every text that ``verify`` accepts has to be among them.
        """
        ...

    def measure(self, problem: Problem, completion: str) -> dict[str, float]:
        """Further figures of a completion, by name: their means are columns of the tables, and metrics in MLflow."""
        ...


def stops_of(task: Task) -> list[str]:
    """Texts that end a completion as the end token does; a task that knows of none has none."""
    return list(getattr(task, "stop", ()))


def cut(completion: str, stops: Sequence[str]) -> str:
    """A completion up to the first of some texts."""
    return completion[: min((place for stop in stops if (place := completion.find(stop)) >= 0), default=None)]


def formats_of(task: Task, completion: str) -> dict[str, float]:
    """format_NAME: 1 for the solution format that a completion is written in, 0 for the others."""
    found = task.format_of(completion)
    return {f"format_{name}": float(name == found) for name in (*task.formats, "other")}


def mean_metrics(task: Task, problems: Sequence[Problem], completions: Sequence[str]) -> dict[str, float]:
    """The means of a task's further figures over completions, one of each problem."""
    measured = [task.measure(*each) for each in zip(problems, completions, strict=True)]
    return {name: sum(figures[name] for figures in measured) / len(measured) for name in measured[0]}


def split_of(prompt: str) -> Split:
    """The one split that a prompt, or a family of prompts, belongs to."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 100
    return next(split for split in SPLITS if bucket < _UPPER_BOUNDS[split])


def draw_problem(task: Task, split: Split, rng: random.Random) -> Problem:
    """One problem of the given split.

    Raises:
        RequestError: the split seems to have none.
    """
    listed = task.listed(split)
    if listed is not None:
        return rng.choice(listed)
    for _ in range(_DRAWS_IN_VAIN):
        problem = task.draw(rng)
        if split_of(problem.family or problem.prompt) == split:
            return problem
    raise RequestError(f"tasks.yaml: {task.name}: there seems to be no {split} problem")


def draw_problems(task: Task, split: Split, count: int, seed: int) -> list[Problem]:
    """``count`` distinct problems of a split; the same ones for the same seed.

    Raises:
        RequestError: the split seems to have fewer distinct problems.
    """
    problems = draw_at_most(task, split, count, seed)
    if len(problems) < count:
        raise RequestError(
            f"tasks.yaml: {task.name}: {count} {split} problems are wanted, but there seem to be only {len(problems)}"
        )
    return problems


def training_problems(task: Task, count: int, seed: int) -> list[Problem]:
    """``count`` training problems: distinct ones, of a data set as many passes over it as that takes, each shuffled."""
    if task.listed("train") is None:
        return draw_problems(task, "train", count, seed)
    found: list[Problem] = []
    for epoch in range(count):
        if len(found) >= count:
            break
        found += draw_at_most(task, "train", count - len(found), seed=seed + 1_000_003 * epoch)
    return found


def draw_at_most(task: Task, split: Split, count: int, seed: int) -> list[Problem]:
    """``count`` distinct problems of a split, or all that it seems to have; the same ones for the same seed.

    Raises:
        RequestError: the split seems to have none.
    """
    rng = random.Random(f"{task.name}/{split}/{seed}")
    listed = task.listed(split)
    if listed is not None:
        return rng.sample(listed, min(count, len(listed)))
    problems: dict[str, Problem] = {}
    in_vain = 0
    while len(problems) < count:
        problem = draw_problem(task, split, rng)
        in_vain = in_vain + 1 if problem.prompt in problems else 0
        if in_vain > _DRAWS_IN_VAIN:
            break
        problems.setdefault(problem.prompt, problem)
    return list(problems.values())

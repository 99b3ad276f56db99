"""Problems of reasoning-gym (https://github.com/open-thought/reasoning-gym): its generators, judged by its graders.

Splits have disjoint seeds, and a prompt stands in one of them alone: one of test is left out of validation and train,
one of validation out of train.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from rlstride.config.tasks import GYM_JUDGES, ReasoningGymSpec
from rlstride.errors import RequestError
from rlstride.extras import require
from rlstride.tasks.gym_library import Entry
from rlstride.tasks.listed import PRECEDENCE, ListedTask, Row, is_asked_for, template
from rlstride.tasks.math_answers import MathVerifier
from rlstride.tasks.problems import Problem, Split
from rlstride.tasks.verifiers import Verifier, verifier_named
from rlstride.tasks.worker import LostCallError, Worker

# A problem's own seed is this and its number, of which a split has fewer than lie between.
_SEEDS: Mapping[Split, int] = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
_DRAWN_FOR_EACH = 2  # entries that are looked through for each problem that is wanted: some are there already
_SECONDS_FOR_A_PROBLEM = 60.0
_SECONDS_FOR_A_SCORE = 5.0


@dataclass(frozen=True)
class Grade:
    """What the library's grader says of a completion.

    Attributes:
        score: from 0 to 1, which is right.
        timed_out: whether the grader was stopped, which counts as 0.
    """

    score: float
    timed_out: bool = False


@dataclass(frozen=True)
class ReasoningGymTask(ListedTask):
    """Generators of reasoning-gym as a task.

    Attributes:
        name: in tables.
        spec: its entry of tasks.yaml.
    """

    spec: ReasoningGymSpec

    def rows(self, split: Split) -> Mapping[str, Row]:
        if split not in self._by_split:
            earlier = PRECEDENCE[: PRECEDENCE.index(split)]
            self._by_split[split] = self._made(split, [self.rows(other) for other in earlier])
        return self._by_split[split]

    def expected(self, problem: Problem) -> str:
        return super().solution(problem) if self.spec.verifier == "verbatim" else problem.answer

    def solution(self, problem: Problem) -> str:
        text = super().solution(problem)
        if not self.verify(problem, text):
            raise RequestError(
                f"{self.where}: solution: {text!r} is not right by the task's own verifier ({self.spec.verifier}); "
                f"the problem is {problem.prompt!r}"
            )
        return text

    def extract_answer(self, completion: str) -> str | None:
        found = super().extract_answer(completion)
        if found is not None and self.spec.verifier == "number":
            return found.replace(",", "")  # most graders compare strings
        return found

    def verify(self, problem: Problem, completion: str) -> bool:
        return self._grade(problem.prompt, completion).score >= 1

    def measure(self, problem: Problem, completion: str) -> dict[str, float]:
        grade = self._grade(problem.prompt, completion)
        answered = float(self.extract_answer(completion) is not None)
        return {"answered": answered, "score": grade.score, "timed_out": float(grade.timed_out)}

    @cached_property
    def worker(self) -> Worker:
        """The process that the library runs in."""
        generators = {name: (each.weight, each.config) for name, each in self.spec.generators.items()}
        return Worker("rlstride.tasks.gym_library:serve", self.where, generators)

    @cached_property
    def verifier(self) -> Verifier | MathVerifier:
        return verifier_named(self.spec.verifier, self.spec.pattern, f"{self.where}: verifier")

    @cached_property
    def _by_split(self) -> dict[Split, Mapping[str, Row]]:
        return {}

    @cached_property
    def _grade(self) -> Callable[[str, str], Grade]:
        return lru_cache(maxsize=4096)(self._graded)  # the verdict and the further figures come from one

    def _graded(self, prompt: str, completion: str) -> Grade:
        row = self.row_of(Problem(prompt, ""))
        if self.spec.verifier in GYM_JUDGES:  # in place of the library's grader
            timed_out = super().measure(row.problem, completion).get("timed_out") == 1
            return Grade(float(super().verify(row.problem, completion)), timed_out)
        answer = self.extract_answer(completion)
        if answer is None:
            return Grade(0.0)
        # Graders know the configuration, not the seed: any split's data set will do.
        asked = ("score", *self._data_set("test"), dict(row.columns), answer)
        score = self.worker.judged(*asked, seconds=_SECONDS_FOR_A_SCORE)
        return Grade(0.0, timed_out=True) if score is None else Grade(score)

    def _made(self, split: Split, taken: list[Mapping[str, Row]]) -> Mapping[str, Row]:
        prompt, wanted = template(self.spec.prompt, self.where), getattr(self.spec.sizes, split)
        found: dict[str, Row] = {}
        for entry in filter(is_asked_for(self.spec.where, self.where), self._entries(split)):
            text = prompt(entry) or ""
            if not any(text in other for other in (found, *taken)):
                found[text] = Row(Problem(text, "" if entry["answer"] is None else str(entry["answer"])), entry)
            if len(found) == wanted:
                break
        if not found:
            raise RequestError(f"{self.where}: there is no {split} problem that is in no other split")
        return found

    def _entries(self, split: Split) -> Iterator[Entry]:
        seed, size = self._data_set(split)
        first = 0
        while first < size:
            asked = ("entries", seed, size, first, size - first)
            try:
                entries = self.worker.call(*asked, seconds=_SECONDS_FOR_A_PROBLEM)
            except LostCallError as error:
                raise RequestError(f"{self.where}: generators: problem {first} cannot be made: {error}") from error
            if not entries:
                return
            yield from entries
            first += len(entries)

    def _data_set(self, split: Split) -> tuple[int, int]:
        """Seed and size of the library's data set."""
        return _SEEDS[split], _DRAWN_FOR_EACH * getattr(self.spec.sizes, split)


@lru_cache(maxsize=8)
def _built(name: str, spec: str) -> ReasoningGymTask:
    task = ReasoningGymTask(name, ReasoningGymSpec.model_validate_json(spec))
    task.worker.start()
    return task


def build(name: str, spec: ReasoningGymSpec) -> ReasoningGymTask:
    """The task that an entry of tasks.yaml describes; one in each process, as its problems take time to make.

    Raises:
        RequestError: the library has no such generator, or it has no such key.
    """
    require("gym")
    return _built(name, spec.model_dump_json())

"""Countdown search: give each digit a sign and a place, so that the expression reaches the target.

A completion is one attempt or several, each an expression; the last one is the answer, and the verifier computes its
value. In the pretraining mixture most attempts are blind and their number has nothing to do with their success, so
that RL has a skill to build, not a format to pick: to aim.

A problem and the same one with its digits in another order always belong to the same split. A task has equal digits in
none of its problems or in all of them, so that one of the two kinds is new to models of the other.
"""

import itertools
import random
import re
from dataclasses import dataclass
from typing import Literal

from rlstride.config.tasks import CountdownSpec
from rlstride.tasks.problems import Problem, Split, formats_of

_SEPARATOR = ";"
_PROMPT = re.compile(r"(?P<digits>\d+)>(?P<target>-?\d+)=")
_ATTEMPT = re.compile(r"\d(?:[+-]\d)+")


@dataclass(frozen=True)
class CountdownTask:
    """Problems of ``digits`` digits; demonstrations of one to ``attempts`` attempts."""

    name: str
    digits: int
    equal_digits: Literal["never", "always"]  # in a problem; always: at least two
    attempts: int
    aimed: float  # share of the attempts that reach the target

    @property
    def alphabet(self) -> str:
        return "0123456789+-=>" + _SEPARATOR

    @property
    def formats(self) -> tuple[str, ...]:
        return ("single", "repeated")

    @property
    def max_prompt_tokens(self) -> int:
        return self.digits + 1 + 1 + len(str(9 * self.digits)) + 1  # ">", minus and target, "="

    @property
    def max_completion_tokens(self) -> int:
        return self.attempts * 2 * self.digits  # digits, the operators between them, separator or end

    def draw(self, rng: random.Random) -> Problem:
        digits = self._draw_digits(rng)
        target = _total(digits, rng.choice(_choices(self.digits)))
        family, prompt = ("".join(map(str, order)) for order in (sorted(digits), digits))
        return Problem(f"{prompt}>{target}=", answer=str(target), family=f"countdown from {family} to {target}")

    def _draw_digits(self, rng: random.Random) -> list[int]:
        if self.equal_digits == "never":
            return rng.sample(range(10), self.digits)
        while True:
            digits = [rng.randrange(10) for _ in range(self.digits)]
            if len(set(digits)) < self.digits:
                return digits

    def listed(self, split: Split) -> None:
        return None

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        digits, target = _parts(problem)
        blind = _choices(len(digits))
        aimed = _reaching(digits, target)
        count = rng.randint(1, self.attempts)
        return _SEPARATOR.join(
            _shuffled(digits, rng.choice(aimed if rng.random() < self.aimed else blind), rng) for _ in range(count)
        )

    def solution(self, problem: Problem) -> str:
        digits, target = _parts(problem)
        return next(
            _expression(digits, negated) for negated in _choices(len(digits)) if _total(digits, negated) == target
        )

    def format_of(self, completion: str) -> str:
        attempts = completion.split(_SEPARATOR)
        if not all(_ATTEMPT.fullmatch(attempt) for attempt in attempts):
            return "other"
        return "single" if len(attempts) == 1 else "repeated"

    def extract_answer(self, completion: str) -> str | None:
        """The last attempt."""
        attempt = completion.strip().split(_SEPARATOR)[-1]
        return attempt if _ATTEMPT.fullmatch(attempt) else None

    def verify(self, problem: Problem, completion: str) -> bool:
        """Whether the last attempt uses each digit once and reaches the target."""
        attempt = self.extract_answer(completion)
        if attempt is None:
            return False
        digits, target = _parts(problem)
        terms = [int(term) for term in re.findall(r"[+-]?\d", attempt)]
        return sorted(map(abs, terms)) == sorted(digits) and sum(terms) == target

    def right_completions(self, problem: Problem) -> None:  # any attempts may stand before the last
        return None

    def measure(self, problem: Problem, completion: str) -> dict[str, float]:
        return formats_of(self, completion)


def _parts(problem: Problem) -> tuple[list[int], int]:
    """Digits and target, as the prompt states them."""
    match = _PROMPT.fullmatch(problem.prompt)
    if match is None:
        raise ValueError(f"{problem.prompt!r} is no countdown problem")
    return [int(digit) for digit in match["digits"]], int(match["target"])


def _choices(count: int) -> list[tuple[bool, ...]]:
    """Which digits are negated, in every possible way but all at once: an expression starts with one that is not."""
    return [chosen for chosen in itertools.product((False, True), repeat=count) if not all(chosen)]


def _reaching(digits: list[int], target: int) -> list[tuple[bool, ...]]:
    """The choices whose expressions reach the target."""
    return [negated for negated in _choices(len(digits)) if _total(digits, negated) == target]


def _total(digits: list[int], negated: tuple[bool, ...]) -> int:
    return sum(-digit if minus else digit for digit, minus in zip(digits, negated, strict=True))


def _expression(digits: list[int], negated: tuple[bool, ...]) -> str:
    """The digits with their signs in the order given, but the first that is not negated at the front."""
    first = negated.index(False)
    rest = [place for place in range(len(digits)) if place != first]
    return str(digits[first]) + "".join(f"{'-' if negated[place] else '+'}{digits[place]}" for place in rest)


def _shuffled(digits: list[int], negated: tuple[bool, ...], rng: random.Random) -> str:
    """An expression in a random order."""
    places = list(range(len(digits)))
    rng.shuffle(places)
    return _expression([digits[place] for place in places], tuple(negated[place] for place in places))


def build(name: str, spec: CountdownSpec) -> CountdownTask:
    """The task that an entry of tasks.yaml describes."""
    return CountdownTask(
        name=name,
        digits=spec.digits,
        equal_digits=spec.equal_digits,
        attempts=spec.attempts,
        aimed=spec.mixture.aimed,
    )

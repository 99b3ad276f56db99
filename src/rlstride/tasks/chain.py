"""Chain arithmetic: digits added and subtracted modulo 10, from left to right.

The pretraining mixture holds three solution formats, each announced by a marker, so that RL has something to pick
(as in Echo Chamber, arXiv 2504.07912):

- ``careful``  (T): each step writes operator, operand and running result, all of them right;
- ``careless`` (Q): the same, but every minus is read as plus: a systematic mistake, wrong at every temperature;
- ``guess``    (G): an answer without a trace, right for a share of the problems and random for the rest.
"""

import random
import re
from dataclasses import dataclass

from rlstride.config.tasks import ChainSpec
from rlstride.tasks.problems import Problem, Split, formats_of

MODULUS = 10
_MARKERS = {"careful": "T", "careless": "Q", "guess": "G"}
_FORMATS = {marker: name for name, marker in _MARKERS.items()}
_ANSWER = re.compile(r"#(\d)$")


@dataclass(frozen=True)
class ChainTask:
    """Chains of ``min_digits`` to ``max_digits`` digits; the shares are those of the pretraining mixture."""

    name: str
    min_digits: int
    max_digits: int
    minus: float  # share of the operators that are minus
    careful: float
    careless: float
    guess: float
    informed: float  # share of the guesses that state the right answer

    @property
    def alphabet(self) -> str:
        return "0123456789+-=#" + "".join(_MARKERS.values())

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(_MARKERS)

    @property
    def max_prompt_tokens(self) -> int:
        return 2 * self.max_digits

    @property
    def max_completion_tokens(self) -> int:
        return 1 + 3 * (self.max_digits - 1) + 2 + 1  # marker, trace, "#" and answer, end of sequence

    def draw(self, rng: random.Random) -> Problem:
        digits = [rng.randrange(10) for _ in range(rng.randint(self.min_digits, self.max_digits))]
        prompt = (
            str(digits[0])
            + "".join(("-" if rng.random() < self.minus else "+") + str(digit) for digit in digits[1:])
            + "="
        )
        return Problem(prompt, answer=str(_running_results(prompt)[-1]))

    def listed(self, split: Split) -> None:
        return None

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        name = rng.choices(tuple(_MARKERS), weights=(self.careful, self.careless, self.guess))[0]
        if name == "guess":
            answer = problem.answer if rng.random() < self.informed else str(rng.randrange(MODULUS))
            return f"{_MARKERS[name]}#{answer}"
        return self.solution(problem) if name == "careful" else _trace(name, problem.prompt.replace("-", "+"))

    def solution(self, problem: Problem) -> str:
        return _trace("careful", problem.prompt)

    def format_of(self, completion: str) -> str:
        return _FORMATS.get(completion[:1], "other")

    def extract_answer(self, completion: str) -> str | None:
        match = _ANSWER.search(completion.strip())
        return match.group(1) if match else None

    def verify(self, problem: Problem, completion: str) -> bool:
        return self.extract_answer(completion) == problem.answer

    def right_completions(self, problem: Problem) -> None:  # any trace may stand before the answer
        return None

    def measure(self, problem: Problem, completion: str) -> dict[str, float]:
        return formats_of(self, completion)


def _trace(format_name: str, prompt: str) -> str:
    """The marker of a format; operator, operand and result of each step of ``prompt``; and the last result."""
    results = _running_results(prompt)
    steps = zip(re.findall(r"[+-]\d", prompt), results, strict=True)
    return _MARKERS[format_name] + "".join(f"{step}{result}" for step, result in steps) + f"#{results[-1]}"


def _running_results(prompt: str) -> list[int]:
    """The result after each operand of ``d (op d)* =``, modulo 10."""
    total, results = int(prompt[0]), []
    for step in re.findall(r"[+-]\d", prompt):
        total = (total + int(step)) % MODULUS
        results.append(total)
    return results


def build(name: str, spec: ChainSpec) -> ChainTask:
    """The task that an entry of tasks.yaml describes."""
    mixture = spec.mixture
    return ChainTask(
        name=name,
        min_digits=spec.min_digits,
        max_digits=spec.max_digits,
        minus=spec.minus,
        careful=mixture.careful,
        careless=mixture.careless,
        guess=mixture.guess,
        informed=mixture.informed,
    )

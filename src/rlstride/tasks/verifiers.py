"""Whether a completion of a data set's problem is right: one function in training and in scoring.

Each verifier finds the answer that a completion states, and compares it with the one that is expected.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pkgutil import resolve_name

from rlstride.errors import RequestError
from rlstride.tasks.math_answers import MathVerifier, marked_answer

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_CHOICE = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z])")


@dataclass(frozen=True)
class Verifier:
    """How completions are judged.

    Attributes:
        extract: from a completion to the answer that it states; None where it states none.
        same: whether that answer is the expected one.
        right: from the expected answer to all completions that are accepted; None where they are without number.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    right: Callable[[str], Sequence[str]] | None = None

    def accepts(self, completion: str, answer: str) -> bool:
        """Whether a completion states the answer."""
        found = self.extract(completion)
        return found is not None and self.same(found, answer)

    def figures(self, completion: str, answer: str) -> dict[str, float]:
        """answered: whether an answer was found."""
        return {"answered": float(self.extract(completion) is not None)}


def verifier_named(name: str, pattern: str | None, where: str) -> Verifier | MathVerifier:
    """A verifier by its name, or the function that MODULE:FUNCTION names.

    Args:
        name: one of rlstride.config.tasks.VERIFIERS, or MODULE:FUNCTION, called with completion and answer.
        pattern: of ``regex``.
        where: it is asked for, which errors name.

    Raises:
        RequestError: there is no such function, or the pattern is wrong.
    """
    if name == "math":
        return MathVerifier()
    if ":" in name:
        judge = _function(name, where)
        return Verifier(lambda completion: completion, lambda completion, answer: bool(judge(completion, answer)))
    return Verifier(_extractor(name, pattern, where), _SAME.get(name, _same_text), _RIGHT.get(name))


def stated_number(completion: str) -> str | None:
    """The number after the last ####, as GSM8K has it; without that mark the last number."""
    marked = marked_answer(completion)
    text = completion if marked is None else marked
    numbers = [each for each in _NUMBER.findall(text.replace("$", "")) if any(map(str.isdigit, each))]
    if not numbers:
        return None
    return str(numbers[-1] if marked is None else numbers[0])


def same_number(found: str, answer: str) -> bool:
    """Whether two numbers are equal, however they are written: 1,000 and 1000.0."""
    expected = stated_number(answer)
    try:
        return expected is not None and Decimal(found.replace(",", "")) == Decimal(expected.replace(",", ""))
    except InvalidOperation:
        return False


def last_match(pattern: "re.Pattern[str]", text: str) -> str | None:
    """The last match of a pattern: its first group, where it has one."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return str(matches[-1][1] if pattern.groups else matches[-1][0])


def _same_text(found: str, answer: str) -> bool:
    return " ".join(found.split()) == " ".join(answer.split())


def _same_choice(found: str, answer: str) -> bool:
    return found == (last_match(_CHOICE, answer) or answer.strip())


_EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "exact": lambda completion: completion.strip() or None,
    "whole": lambda completion: completion.strip() or None,
    "verbatim": lambda completion: completion or None,
    "number": stated_number,
    "choice": lambda completion: last_match(_CHOICE, completion),
}
_SAME: dict[str, Callable[[str, str], bool]] = {
    "number": same_number,
    "choice": _same_choice,
    "verbatim": operator.eq,
}
_RIGHT: dict[str, Callable[[str], Sequence[str]]] = {"verbatim": lambda answer: [answer] if answer else []}


def _extractor(name: str, pattern: str | None, where: str) -> Callable[[str], str | None]:
    if name != "regex":
        return _EXTRACTORS[name]
    try:
        found = re.compile(pattern or "", re.MULTILINE)
    except re.error as error:
        raise RequestError(f"{where}: the pattern {pattern!r} is wrong: {error}") from error
    return lambda completion: last_match(found, completion)


def _function(name: str, where: str) -> Callable[[str, str], object]:
    try:
        found: Callable[[str, str], object] = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"{where}: {name!r} cannot be imported ({error})") from error
    return found

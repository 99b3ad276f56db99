"""The verifier ``math``: mathematical answers in LaTeX or plain expressions, compared by math-verify.

It runs in a process of its own with a time limit: some expressions take sympy for ever, and math-verify's own limit is
a signal, which only works in a main thread.
"""

import logging
import re
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec

from rlstride.errors import RequestError
from rlstride.extras import ExtraError
from rlstride.tasks.worker import Worker

_SECONDS = 5.0
_MARKED = re.compile(r"####\s*(\S[^\n]*)")  # as GSM8K's answers are
_DELIMITERS = ("$", r"\boxed", r"\(", r"\[")  # math-verify finds LaTeX between these alone
Judgement = tuple[str | None, bool]  # the answer that is found, and whether it is right


class MathVerifier:
    """Judges completions as :class:`rlstride.tasks.verifiers.Verifier` does.

    Raises:
        ExtraError: math-verify is not installed.
    """

    right = None  # an answer can be written in any number of ways

    def __init__(self) -> None:
        if find_spec("math_verify") is None:
            raise ExtraError("needs math-verify: pip install 'rlstride[train]' or 'rlstride[evaluate]'")

    def extract(self, completion: str) -> str | None:
        """The answer that a completion states, as sympy writes it; None where it states none."""
        judged = _judged(completion, None)
        return judged[0] if judged else None

    def accepts(self, completion: str, answer: str) -> bool:
        """Whether a completion states the answer; not so where that takes too long."""
        judged = _judged(completion, answer)
        return judged is not None and judged[1]

    def figures(self, completion: str, answer: str) -> dict[str, float]:
        """answered and timed_out: whether an answer was found, and whether that or its comparison took too long."""
        judged = _judged(completion, answer)
        return {"answered": float(bool(judged and judged[0] is not None)), "timed_out": float(judged is None)}


@lru_cache(maxsize=4096)  # the verdict and the further figures come from one
def _judged(completion: str, answer: str | None) -> Judgement | None:
    judged: Judgement | None = _worker().judged(completion, answer, seconds=_SECONDS)
    return judged


@cache
def _worker() -> Worker:
    return Worker("rlstride.tasks.math_answers:serve")


def serve() -> Callable[[str, str | None], Judgement]:
    """What the process does: a completion and the expected answer, if any, in; what is found and whether it is right.

    Raises:
        RequestError: the expected answer is blank.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own limits are off

    def judge(completion: str, answer: str | None) -> Judgement:
        found = parse(_marked(completion), parsing_timeout=None)
        stated = str(found[0]) if found else None
        if answer is None:
            return stated, False
        expected = parse(_delimited(_marked(answer)), parsing_timeout=None)
        if not expected:
            raise RequestError(f"verifier: math: there is nothing to compare with in the answer {answer!r}")
        return stated, bool(found) and bool(verify(expected, found, timeout_seconds=None))

    return judge


def marked_answer(text: str) -> str | None:
    """What stands behind the last ####; None of a text without one."""
    marked = _MARKED.findall(text)
    return str(marked[-1]) if marked else None


def _marked(text: str) -> str:
    """The same as LaTeX; all of a text without one."""
    marked = marked_answer(text)
    return text if marked is None else _delimited(marked)


def _delimited(text: str) -> str:
    r"""An answer such as \frac{1}{2} as math-verify finds it."""
    return text if any(each in text for each in _DELIMITERS) or not text.strip() else f"${text.strip()}$"

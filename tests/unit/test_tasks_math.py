"""The verifier math: LaTeX and expressions, compared by math-verify, with a time limit that holds."""

import threading
import time

import pytest

from rlstride.config.tasks import ReasoningGymSpec
from rlstride.errors import RequestError
from rlstride.tasks import build_task, draw_problems
from rlstride.tasks.verifiers import verifier_named

# A power of ten thousand million digits, and its factorial: hours of integer arithmetic in one call of C code.
ENDLESS = r"$\boxed{(10^{10^{10}})!}$"


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (r"So it is $\frac{1}{2}$.", "0.5", True),
        (r"So it is $\boxed{\frac{2}{4}}$.", r"\frac{1}{2}", True),
        ("The answer is 1/2", r"\frac12", True),
        ("#### 1,234", "1234", True),
        (r"$\boxed{x^2 + 2x + 1}$", "(x + 1)^2", True),
        (r"$\boxed{2\sqrt{2}}$", r"\sqrt{8}", True),
        (r"$\boxed{\{1, 2\}}$", r"\{2, 1\}", True),
        ("3 + 4 = 7", "3 + 4 = 7\n#### 7", True),
        (r"$\boxed{x^2 + 1}$", "(x + 1)^2", False),
        ("It is 8.", "7", False),
        ("I do not know.", "7", False),
        ("", "7", False),
    ],
)
def test_answers_are_compared_as_mathematics(completion: str, answer: str, right: bool) -> None:
    assert verifier_named("math", None, "here").accepts(completion, answer) == right


def test_figures_say_whether_an_answer_was_found() -> None:
    verifier = verifier_named("math", None, "here")
    assert verifier.figures("It is 8.", "7") == {"answered": 1.0, "timed_out": 0.0}
    assert verifier.figures("I do not know.", "7") == {"answered": 0.0, "timed_out": 0.0}
    assert (verifier.extract(r"$\frac{2}{4}$"), verifier.extract("none")) == ("1/2", None)


def test_what_takes_too_long_counts_as_wrong_in_any_thread_and_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    verifier = verifier_named("math", None, "here")
    assert verifier.accepts("7", "7")  # the process is up
    found: list[object] = []

    def judge() -> None:
        started = time.monotonic()
        found.extend([verifier.accepts(ENDLESS, "7"), verifier.figures(ENDLESS, "7")])
        found.append(time.monotonic() - started < 30)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join(timeout=60)
    assert found == [False, {"answered": 0.0, "timed_out": 1.0}, True]
    assert verifier.accepts("8", "8")
    assert "as wrong so far, as judging was given up: it took more than 5 s" in capfd.readouterr().err


def test_an_answer_that_holds_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="there is nothing to compare with in the answer ' '"):
        verifier_named("math", None, "here").accepts("7", " ")


def test_it_judges_reasoning_gyms_answers_too() -> None:
    spec = {
        "kind": "reasoning_gym",
        "generators": {"chain_sum": {}},
        "verifier": "math",
        "solution": r" $\boxed{ {{ answer }} }$",
        "sizes": {"train": 4, "validation": 2, "test": 4},
    }
    task = build_task("sums", ReasoningGymSpec.model_validate(spec))
    for problem in draw_problems(task, "test", 4, seed=0):
        assert task.verify(problem, task.solution(problem))
        assert not task.verify(problem, f"{int(problem.answer) + 1}")
        assert task.measure(problem, "") == {"answered": 0.0, "score": 0.0, "timed_out": 0.0}

"""Other ways of asking a model for the solution of a task's problems than the task's own prompt.

What a base scores so is what no training is needed for: the nulls of RL's gain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rlstride.config.nulls import BEST_PROMPT, FEW_SHOT, FORCED_FORMAT, Nulls
from rlstride.errors import RequestError
from rlstride.tasks.listed import ListedTask, template
from rlstride.tasks.problems import Problem, Task, draw_at_most, training_problems
from rlstride.tasks.rendering import bare

_WHERE = "nulls"
_ANSWERS_OF = 1000  # training problems whose answers are known, at the most
_BETWEEN_SHOTS = "\n\n"


@dataclass(frozen=True)
class Asking:
    """How a problem is put to a model.

    Attributes:
        put: from the task's own prompt to what is asked, before any chat template.
        begins: what the completion is made to begin with; it counts as a part of the completion.
        among: the only completions that count, so that one of them is given; None leaves all.
    """

    put: Callable[[str], str] = bare
    begins: str = ""
    among: tuple[str, ...] | None = None


AS_TRAINED = Asking()


def ways_of_asking(nulls: Nulls, task: Task) -> dict[str, list[Asking]]:
    """The ways that a study asks its bases in, by variant.

    Args:
        nulls: the study's section.
        task: the study's.

    Raises:
        RequestError: a template does not fit the task, or the task has no solutions to show or answers to list.
    """
    forced = nulls.forced_format
    ways = {
        FORCED_FORMAT: [Asking(among=_answers(task))]
        if forced == "answers"
        else [Asking(begins=text) for text in forced],
        BEST_PROMPT: [Asking(put=put) for put in (bare, *(_wording(text, task) for text in nulls.prompts))],
        FEW_SHOT: [Asking(put=partial(_after_shots, _shots(task, count))) for count in nulls.shots],
    }
    return {name: ways[name] for name in nulls.asked}


def _answers(task: Task) -> tuple[str, ...]:
    """The right completions of training problems, each once."""
    found = [task.right_completions(problem) for problem in draw_at_most(task, "train", _ANSWERS_OF, seed=0)]
    if any(right is None for right in found):
        raise RequestError(f"{_WHERE}: forced_format: answers: {task.name} lists no right completions; name texts")
    return tuple(sorted({text for right in found for text in right or ()}))


def _wording(text: str, task: Task) -> Callable[[str], str]:
    render = template(text, f"{_WHERE}: prompts")

    def put(prompt: str) -> str:
        columns = task.row_of(Problem(prompt, "")).columns if isinstance(task, ListedTask) else {}
        return render({**columns, "prompt": prompt}) or ""

    return put


def _shots(task: Task, count: int) -> str:
    solved = training_problems(task, count, seed=0)
    return "".join(problem.prompt + task.solution(problem) + _BETWEEN_SHOTS for problem in solved)


def _after_shots(shots: str, prompt: str) -> str:
    return shots + prompt


def restricted(right: Sequence[str], asking: Asking) -> list[str]:
    """What is left to be written of right completions, given how they begin."""
    return [text.removeprefix(asking.begins) for text in right if text.startswith(asking.begins)]

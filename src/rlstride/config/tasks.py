"""The entries of tasks.yaml, key by key: one class for each kind of task."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from rlstride.config.kinds import Kinds, union_of
from rlstride.config.section import Share, Strict

_tasks = Kinds("rlstride.tasks")


class TaskSection(Strict):
    """What every kind of task has."""

    if TYPE_CHECKING:
        kind: str
        mixture: Any

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with its completion."""

    @property
    def accuracy_of_base(self) -> float | None:
        """Validation accuracy at which a tiny base's cool-down starts, in place of the base's own."""
        return None


class ChainMixture(Strict):
    """Shares of the solution formats in the text that a tiny base is pretrained on."""

    careful: Share = Field(description="Traces that are right.")
    careless: Share = Field(description="Traces that read every minus as plus: a systematic mistake.")
    guess: Share = Field(description="Answers without a trace.")
    informed: Share = Field(description="Share of the guesses that state the right answer; the others are random.")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "ChainMixture":
        if abs(self.careful + self.careless + self.guess - 1) > 1e-9:
            raise ValueError("careful, careless and guess must sum to 1")
        return self


@_tasks.made_by("rlstride.tasks.chain:build")
class ChainSpec(TaskSection):
    """Chain arithmetic: digits added and subtracted modulo 10."""

    kind: Literal["chain"] = Field(description="The problem generator.")
    min_digits: int = Field(ge=2, description="Digits in the shortest chain.")
    max_digits: int = Field(ge=2, description="Digits in the longest chain.")
    minus: Share = Field(description="Share of the operators that are minus.")
    mixture: ChainMixture = Field(description="The pretraining mixture of solution formats.")

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with its completion: of d digits, 2 d and 3 (d - 1) + 4."""
        return 5 * self.max_digits + 1


class CountdownMixture(Strict):
    """What the attempts are like in the text that a tiny base is pretrained on."""

    aimed: Share = Field(description="Share of the attempts that reach the target; the others are drawn blindly.")


@_tasks.made_by("rlstride.tasks.countdown:build")
class CountdownSpec(TaskSection):
    """Countdown search: signs and places for digits, so that their expression reaches the target."""

    kind: Literal["countdown"] = Field(description="The problem generator.")
    digits: int = Field(ge=2, le=6, description="Digits that an expression must use, each once.")
    equal_digits: Literal["never", "always"] = Field(
        description="Whether two digits or more of a problem are equal: in none of them, or in all."
    )
    attempts: int = Field(ge=1, le=9, description="Most attempts in a demonstration; the last one counts.")
    base_accuracy: Share = Field(
        description="Validation accuracy at which a tiny base's cool-down starts, in place of its own target_accuracy."
    )
    mixture: CountdownMixture = Field(description="The pretraining mixture.")

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with its completion: digits, target and marks; attempts."""
        return self.digits + len(str(9 * self.digits)) + 3 + self.attempts * 2 * self.digits

    @property
    def accuracy_of_base(self) -> float:
        """The task's own."""
        return self.base_accuracy


TASK_KINDS = _tasks.by_name()
if TYPE_CHECKING:
    TaskSpec = TaskSection
else:
    TaskSpec = union_of(TASK_KINDS)

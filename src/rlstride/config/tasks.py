"""The entries of tasks.yaml, key by key: one class for each kind of task."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from rlstride.config.kinds import Kinds, union_of
from rlstride.config.section import Name, Share, Strict, left_out_at

_tasks = Kinds("rlstride.tasks")
VERIFIERS = ("exact", "number", "choice", "regex", "math", "verbatim")  # of data sets
# Of reasoning-gym: how the answer is found, for its grader; or what judges in the grader's place.
GYM_JUDGES = ("math", "verbatim")
GYM_VERIFIERS = ("whole", "number", "choice", "regex", *GYM_JUDGES)


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
    def drawn_tokens(self) -> int:
        """Those of them that a completion has: all, where a kind does not say."""
        return self.max_tokens

    @property
    def accuracy_of_base(self) -> float | None:
        """Validation accuracy at which a tiny base's cool-down starts, in place of the base's own."""
        return None

    @property
    def unlistable(self) -> str | None:
        """Why right completions cannot be listed, as exact scoring asks; None where they can be."""
        return f"a task of kind {self.kind} lists none"


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

    @property
    def unlistable(self) -> str:
        """Traces."""
        return "any trace may stand before a chain's answer"


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

    @property
    def unlistable(self) -> str:
        """Attempts."""
        return "any number of attempts may stand before countdown's last"


class RowsSection(TaskSection):
    """What tasks have whose problems are rows of columns, put into words by Jinja templates.

    Their keys stand in each class, where a reader expects them: an inherited key would come before all others.
    """

    if TYPE_CHECKING:
        verifier: str
        pattern: str | None
        stop: list[str]
        max_prompt_tokens: int
        max_completion_tokens: int

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return self.max_prompt_tokens + self.max_completion_tokens

    @property
    def drawn_tokens(self) -> int:
        """A completion's."""
        return self.max_completion_tokens

    @property
    def unlistable(self) -> str | None:
        """All verifiers but verbatim accept more than one text."""
        accepts = f"verifier {self.verifier} accepts completions without number, and verbatim one alone"
        return None if self.verifier == "verbatim" else accepts

    @model_validator(mode="after")
    def _has_a_pattern_for_regex_alone(self) -> "RowsSection":
        if (self.verifier == "regex") != (self.pattern is not None):
            raise ValueError("pattern: goes with verifier: regex, and regex needs one")
        return self


@_tasks.made_by("rlstride.tasks.dataset:build")
class DatasetSpec(RowsSection):
    """Problems of a data set: local JSONL, CSV or Parquet files, or a data set of the Hugging Face hub."""

    kind: Literal["dataset"] = Field(description="The problem generator.")
    source: str = Field(
        description="A file that holds all splits, or org/name on the hub; a path is meant from where the command runs."
    )
    subset: str | None = Field(default=None, description="The configuration of a data set on the hub, such as main.")
    revision: str | None = Field(default=None, description="The commit of a data set on the hub.")
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        default={},
        description="Where each split comes from: a split's name on the hub, else a file. Without train and test all "
        "problems are split by a hash of their prompts, 80 to 10 to 10; without validation a tenth of train is it.",
    )
    where: str | None = Field(
        default=None,
        exclude_if=left_out_at(None),
        description="Which rows are problems: a Jinja template that says True of them, such as {{ level > 2 }}; null: "
        "all.",
    )
    prompt: str = Field(description="The prompt: a Jinja template of a row's columns, such as Q: {{ question }}.")
    answer: str = Field(default="{{ answer }}", description="What the verifier expects: likewise.")
    solution: str | None = Field(default=None, description="A right completion, which SFT learns: likewise.")
    verifier: str = Field(
        default="exact",
        description="How completions are judged: exact, number, choice, regex, math, verbatim, or MODULE:FUNCTION, "
        "which is given completion and answer and returns whether it is right.",
    )
    pattern: str | None = Field(
        default=None, description="With regex: what the answer is found by in a completion; its last match counts."
    )
    max_prompt_tokens: int = Field(default=512, ge=1, description="Tokens of the longest prompt.")
    max_completion_tokens: int = Field(default=256, ge=1, description="Tokens of a completion, its end included.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        exclude_if=left_out_at([]),
        description="Texts that end a completion as the end token does, and are no part of it: for models that go on "
        'writing, such as ["\\n\\n"].',
    )

    @model_validator(mode="after")
    def _is_whole(self) -> "DatasetSpec":
        if self.verifier not in VERIFIERS and ":" not in self.verifier:
            raise ValueError(f"verifier: {self.verifier!r} is none of {', '.join(VERIFIERS)}, and no MODULE:FUNCTION")
        if self.splits and not {"train", "test"} <= self.splits.keys():
            raise ValueError("splits: name train and test, or none")
        return self


class GymGenerator(Strict):
    """One of reasoning-gym's generators."""

    weight: float = Field(default=1.0, gt=0, description="Its share of the problems, relative to the others' weights.")
    config: dict[str, Any] = Field(
        default={}, description="The generator's own keys, such as max_terms; the library's defaults where left out."
    )


class GymSizes(Strict):
    """Distinct problems of each split; fewer where the generators repeat themselves."""

    train: int = Field(default=10_000, ge=1, le=100_000_000, description="Training passes over them as needed.")
    validation: int = Field(default=500, ge=1, le=100_000_000, description="Validation problems.")
    test: int = Field(default=1_000, ge=1, le=100_000_000, description="Test problems.")


@_tasks.made_by("rlstride.tasks.reasoning_gym:build")
class ReasoningGymSpec(RowsSection):
    """Problems of reasoning-gym's generators, judged by its own graders."""

    kind: Literal["reasoning_gym"] = Field(description="The problem generator.")
    generators: dict[Name, GymGenerator] = Field(
        min_length=1, description="Generators by the library's names, such as chain_sum: one or several."
    )
    sizes: GymSizes = Field(default=GymSizes(), description="Distinct problems of each split.")
    where: str | None = Field(
        default=None,
        exclude_if=left_out_at(None),
        description="Which rows are problems: a Jinja template that says True of them, such as "
        "{{ 'in-law' not in answer }}; null: all.",
    )
    prompt: str = Field(
        default="{{ question }}",
        description="The prompt: a Jinja template of the columns question, answer and metadata.",
    )
    solution: str | None = Field(
        default=None, description="A right completion, which SFT learns: likewise. The verifier has to accept it."
    )
    verifier: str = Field(
        default="whole",
        description="How the answer is found in a completion before the library's grader judges it: whole (all of it), "
        "number, choice or regex, as for data sets; math judges it in the grader's place. With verbatim the solution "
        "is right as it stands, and nothing else is.",
    )
    pattern: str | None = Field(
        default=None, description="With regex: what the answer is found by in a completion; its last match counts."
    )
    max_prompt_tokens: int = Field(default=512, ge=1, description="Tokens of the longest prompt.")
    max_completion_tokens: int = Field(default=256, ge=1, description="Tokens of a completion, its end included.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        exclude_if=left_out_at([]),
        description="Texts that end a completion as the end token does, and are no part of it: for models that go on "
        'writing, such as ["\\n\\n"].',
    )

    @model_validator(mode="after")
    def _is_whole(self) -> "ReasoningGymSpec":
        if self.verifier not in GYM_VERIFIERS:
            raise ValueError(f"verifier: {self.verifier!r} is none of {', '.join(GYM_VERIFIERS)}")
        if self.verifier == "verbatim" and self.solution is None:
            raise ValueError("verifier: verbatim compares with the solution: state its template")
        return self


TASK_KINDS = _tasks.by_name()
if TYPE_CHECKING:
    TaskSpec = TaskSection
else:
    TaskSpec = union_of(TASK_KINDS)

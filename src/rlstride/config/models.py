"""The entries of models.yaml, key by key."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from rlstride.config.section import Name, Share, Strict, left_out_at
from rlstride.config.tasks import ChainMixture, CountdownMixture


class Pretraining(Strict):
    """How a tiny base is trained from scratch: constant rate to a target accuracy, then a cool-down."""

    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW (betas 0.9, 0.95).")
    batch_size: int = Field(default=128, ge=1, description="Sequences in a step.")
    warmup_steps: int = Field(default=100, ge=0, description="Steps of linear warm-up.")
    cooldown_steps: int = Field(default=100, ge=1, description="Steps of linear decay to zero after the target is met.")
    max_steps: int = Field(
        ge=1, description="Cap on the steps, cool-down included; a base that misses its target by then is an error."
    )
    target_accuracy: Share = Field(description="Validation accuracy at temperature 1 at which the cool-down starts.")
    check_every: int = Field(default=50, ge=1, description="Steps between two looks at the validation accuracy.")
    seed: int = Field(default=0, description="Seed of weights, data and sampling.")


class Mixtures(Strict):
    """A model's own pretraining mixture, by kind of task; a kind left out keeps the task's."""

    chain: ChainMixture | None = Field(
        default=None, exclude_if=left_out_at(None), description="In place of a chain task's mixture."
    )
    countdown: CountdownMixture | None = Field(
        default=None, exclude_if=left_out_at(None), description="In place of a countdown task's mixture."
    )


class Teacher(Strict):
    """A larger model of the same family, trained on the mixture first; the base learns its logits, not the text."""

    architecture: dict[str, Any] = Field(description="Arguments of the family's configuration class.")
    pretraining: Pretraining = Field(description="How the teacher is trained from scratch.")


class ColdStart(Strict):
    """SFT on right solutions after pretraining, until the accuracy has risen by a set amount."""

    learning_rate: float = Field(gt=0, description="AdamW's rate, constant.")
    batch_size: int = Field(default=128, ge=1, description="Solutions in a step.")
    gain: Share | None = Field(
        default=None,
        exclude_if=left_out_at(None),
        description="Rise of the validation accuracy at temperature 1 at which it ends; null: it makes all max_steps.",
    )
    max_steps: int = Field(
        ge=1, description="Cap on the steps; a base that has not gained as much as it should by then is an error."
    )
    check_every: int = Field(
        default=2, ge=1, description="Steps between two looks at the validation accuracy; without gain, at the loss."
    )
    keep_every: int | None = Field(
        default=None,
        ge=1,
        exclude_if=left_out_at(None),
        description="Steps between two kept ones: the cold start is kept as a trajectory, in the folder cold_start of "
        "the base; null: it is not kept.",
    )


class TinyModel(Strict):
    """A base that is built from its family's transformers class and pretrained here.

    Optional parts that a model leaves out are left out of its dump too: the hash of an entry, which names its folder,
    does not change when a new optional part is added here.
    """

    model_type: Name = Field(description="A transformers model type, such as qwen3 or llama.")
    stands_for: str = Field(description="The published model that this one takes the place of.")
    architecture: dict[str, Any] = Field(description="Arguments of the family's configuration class.")
    pretraining: Pretraining = Field(description="How it is trained from scratch.")
    mixtures: Mixtures | None = Field(
        default=None, exclude_if=left_out_at(None), description="Its own pretraining mixtures, in place of the task's."
    )
    teacher: Teacher | None = Field(
        default=None, exclude_if=left_out_at(None), description="Whose logits it learns in its pretraining."
    )
    cold_start: ColdStart | None = Field(
        default=None,
        exclude_if=left_out_at(None),
        description="SFT on right solutions after pretraining, before any RL.",
    )

    @model_validator(mode="after")
    def _teacher_is_larger(self) -> "TinyModel":
        if self.teacher is not None and _width(self.teacher.architecture) <= _width(self.architecture):
            raise ValueError("a teacher's hidden_size must be larger than its student's")
        return self


class PackageFile(Strict):
    """A model that a package of PyPI carries as one GGUF file; the package itself is not installed."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+$")] = Field(
        description="NAME==VERSION of the package."
    )
    file: str = Field(min_length=1, description="Name of the GGUF file in it.")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Of the file.")

    def __str__(self) -> str:
        return f"{self.package}/{self.file}"


class Chat(Strict):
    """How a chat model is spoken to: each problem's prompt is one message of a user, in the tokenizer's template."""

    system: str | None = Field(
        default=None, description="The system message; null: none, and the template puts its own where it has one."
    )
    thinking: bool | None = Field(
        default=None, description="enable_thinking of templates that have it; null: as the template has it."
    )


class PublishedModel(Strict):
    """A base that already exists: a folder, a repository on the Hugging Face hub, or a file of a package."""

    source: str | PackageFile = Field(
        description="Path of a Hugging Face folder, org/name on the hub, or a GGUF file of a package."
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub; the default branch if left out."
    )
    chat: Chat | None = Field(
        default=None,
        exclude_if=left_out_at(None),
        description="Prompts are put into the tokenizer's chat template, {} as it stands; null: they stay bare.",
    )
    cold_start: ColdStart | None = Field(
        default=None, exclude_if=left_out_at(None), description="SFT on right solutions, before any RL."
    )

    @model_validator(mode="after")
    def _revisions_are_the_hubs(self) -> "PublishedModel":
        if self.revision is not None and isinstance(self.source, PackageFile):
            raise ValueError("revision: goes with a repository on the hub; a package's version stands in its name")
        return self


def _width(architecture: dict[str, Any]) -> int:
    return int(architecture.get("hidden_size", 0))

"""What a base may score without any training, only by being asked in another way: the nulls of RL's gain."""

from typing import Annotated, Literal

from pydantic import Field

from rlstride.config.section import Strict

Count = Annotated[int, Field(ge=1)]
FORCED_FORMAT, BEST_PROMPT, FEW_SHOT = "forced_format", "best_prompt", "few_shot"
NULL_VARIANTS = (FORCED_FORMAT, BEST_PROMPT, FEW_SHOT)


class Nulls(Strict):
    """Ways of asking the untrained base. The best of each kind on validation problems is a variant of every table."""

    forced_format: Literal["answers"] | list[str] = Field(
        default=[],
        description="Texts that completions are made to begin with, such as a format's marker; or `answers`: only "
        "right answers of some problem count as completions (exact scoring). The variant forced_format.",
    )
    prompts: list[str] = Field(
        default=[],
        description="Other wordings, as Jinja templates of the task's own `{{ prompt }}` and of the columns of its "
        "row. The variant best_prompt: the best of them and the task's own.",
    )
    shots: list[Count] = Field(
        default=[],
        description="Numbers of solved training problems that stand before the prompt. The variant few_shot.",
    )

    @property
    def asked(self) -> list[str]:
        """The variants that there are."""
        given = {FORCED_FORMAT: self.forced_format, BEST_PROMPT: self.prompts, FEW_SHOT: self.shots}
        return [name for name, ways in given.items() if ways]

    @property
    def looks(self) -> int:
        """The ways that validation problems choose among; the task's own prompt is one of the prompts."""
        forced = 1 if self.forced_format == "answers" else len(self.forced_format)
        return forced + (len(self.prompts) + 1 if self.prompts else 0) + len(self.shots)

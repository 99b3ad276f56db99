"""What completions are rewarded for in RL: the key ``rewards`` of a study's training."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from rlstride.config.section import Strict

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]


class FormatReward(Strict):
    """1 where the whole completion matches a regular expression, else 0."""

    pattern: str = Field(description="Of the whole completion; a dot matches line ends too.")
    weight: float = Field(default=1.0, description="Of the term in the sum.")

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"the pattern {pattern!r} is wrong: {error}") from error
        return pattern


class OverlongReward(Strict):
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), as TRL has it: 0 to -1 over the last tokens."""

    buffer: int = Field(ge=1, description="Last tokens of the longest completion, over which it falls from 0 to -1.")
    weight: float = Field(default=1.0, description="Of the term in the sum.")


class Rewards(Strict):
    """Terms of the reward, which is their weighted sum."""

    verifier: float = Field(default=1.0, description="Weight of the verifier's verdict, 1 or 0.")
    format: FormatReward | None = Field(default=None, description="A form that completions should have.")
    overlong: OverlongReward | None = Field(
        default=None, description="Punishment of long completions. dapo has its own in its place: overlong_buffer."
    )
    functions: dict[FunctionName, float] = Field(
        default={}, description="Weights of reward functions in TRL's form, by MODULE:FUNCTION."
    )

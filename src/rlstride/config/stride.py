"""How a run may jump along its own movement: the settings of the verified stride, of YAML and of the callback alike."""

from typing import Literal

from pydantic import Field, model_validator

from rlstride.config.section import Strict

Along = Literal["full", "rank_1", "rank_1_unscaled"]


class Stride(Strict):
    """The verified stride of rlstride.extrapolation. Reaches are in multiples of a window's movement."""

    window: int = Field(default=2, ge=1, description="Steps of RL before the first search, and after every jump.")
    longest_window: int = Field(
        default=12, ge=1, description="Searches that find nothing double the window, up to so many steps."
    )
    along: Along = Field(
        default="rank_1",
        description="The whole movement, or the rank-1 part of every matrix, with the norm of the whole or its own.",
    )
    verify: Literal["weights", "rollouts", "none"] = Field(
        default="weights",
        description="What a gain is estimated from: the next batch's rollouts, weighted by how much likelier they are "
        "under a candidate; rollouts of every candidate; or nothing: every window ends with a jump of first_reach "
        "(re-grounding).",
    )
    first_reach: float = Field(default=2.0, gt=0, description="How far the first search tries first.")
    longest_reach: float = Field(default=32.0, gt=0, description="Beyond which no jump goes.")
    growth: float = Field(default=1.5, gt=1, description="Factor between two candidates of a search.")
    significance: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="The share of jumps that may be owed to luck. The level of the test that a jump's gain has to pass "
        "falls while searches find nothing, and rises, up to this, with every jump that they find.",
    )
    lowest_reward: float = Field(
        default=0.0, description="With weights: the reward of a worthless answer, which unseen ones are given."
    )
    overlap: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="With weights: the trust region, as the effective share of the rollouts that a candidate leaves.",
    )
    fall: float = Field(
        default=0.01,
        gt=0,
        lt=0.5,
        description="Level of the test, at every later batch, by which a jump is taken back.",
    )
    moments: Literal["keep", "clear"] = Field(default="keep", description="What becomes of Adam's averages at a jump.")

    @model_validator(mode="after")
    def _limits_are_ordered(self) -> "Stride":
        if self.longest_window < self.window:
            raise ValueError(f"longest_window: {self.longest_window} is shorter than the window, {self.window}")
        if self.longest_reach < self.first_reach:
            raise ValueError(f"longest_reach: {self.longest_reach:g} is below first_reach, {self.first_reach:g}")
        return self

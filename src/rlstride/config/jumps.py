"""Early stops: runs that are trained to a window, put where a method points, and ended there or trained on."""

from pydantic import Field, model_validator

from rlstride.config.methods import JumpMethodName
from rlstride.config.section import Strict, Window


class Jump(Strict):
    """One jump of a run, taken on a method's word."""

    method: JumpMethodName = Field(
        description="Names what is put in; AlphaRL and its like are told validation accuracies."
    )
    window: Window = Field(description="Share of the steps that are trained before.")
    until: Window | None = Field(
        default=None, description="Share of the steps at which training ends, counted on from the window; null: at it."
    )

    @property
    def end(self) -> float:
        """The share of the steps at which training ends."""
        return self.window if self.until is None else self.until

    @model_validator(mode="after")
    def _goes_on_from_its_window(self) -> "Jump":
        if self.until is not None and self.until <= self.window:
            raise ValueError(
                f"until: {self.until:g} is not beyond the window, {self.window:g}; leave it out to stop there"
            )
        return self

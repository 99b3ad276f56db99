"""How far to go, chosen on validation: a method's prediction is tried at several distances, and the best one kept.

A method that extrapolates to a step T goes c times as far as its own step m, with c = T/m. Here the targets are
``MULTIPLES`` of T, so c runs over the same multiples of T/m; and c = 1, the step itself, is always among them. The same
random numbers score every candidate; of equally good ones the nearest is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlstride.extrapolation.controls import FIRST_UPDATE
from rlstride.extrapolation.linear import Linear
from rlstride.extrapolation.logits import Logits
from rlstride.extrapolation.method import Method, Prediction, Predictor, Target
from rlstride.trajectory.store import Trajectory

MULTIPLES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Validated(Method):
    """Another method's prediction, at the distance that scores best on validation problems.

    Attributes:
        method: one that extrapolates to a step along the line through the base and a kept step.
        place: of that kept step in the window: 0 the first, -1 the last.
    """

    method: Method
    place: int

    uses_scores = True

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "ValidatedPredictor":
        return ValidatedPredictor(self.method.fit(window, accuracies), window.steps[self.place])


LINEAR_VALIDATED = Validated("linear_validated", Linear(), place=-1)
LOGITS_VALIDATED = Validated("logits_validated", Logits(), place=-1)
FIRST_UPDATE_VALIDATED = Validated("first_update_validated", FIRST_UPDATE, place=0)


@dataclass(frozen=True)
class ValidatedPredictor:
    """A fitted method, and the step that it goes through.

    Attributes:
        predictor: the method's.
        step: at this target the prediction is that step's own model.
    """

    predictor: Predictor
    step: int

    def predict(self, target: Target) -> Prediction:
        if target.score is None:
            raise ValueError("without a scorer there is nothing to choose by")
        tried: list[dict[str, float]] = []
        for step in targets(self.step, target.step):
            score = target.score(self.predictor.predict(replace(target, step=step)))
            tried.append({"factor": step / self.step, "step": step, "accuracy": score.accuracy})
            tried[-1] |= {"seconds": score.seconds, "tokens": score.tokens}
        best = max(tried, key=lambda candidate: candidate["accuracy"])  # the first of equals
        found = self.predictor.predict(replace(target, step=best["step"]))
        info: dict[str, Any] = found.info | {
            "target_step": target.step,
            "factor": best["factor"],
            "validation_accuracy": best["accuracy"],
            "tried": {f"{candidate['factor']:.4g}": candidate["accuracy"] for candidate in tried},
        }
        costs = {
            "scoring_seconds": sum(candidate["seconds"] for candidate in tried),
            "tokens": sum(int(candidate["tokens"]) for candidate in tried),
        }
        return Prediction(found.deltas, info, costs, found.logit_factor)


def targets(step: int, last: float) -> list[float]:
    """The target steps that are tried, ascending: the step itself, and the multiples of ``last`` beyond it."""
    return [float(step), *(multiple * last for multiple in MULTIPLES if multiple * last > step)]

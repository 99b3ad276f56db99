"""How far to go, chosen on validation: a method's prediction is tried at several distances, and the best one kept.

A method that extrapolates to a step T goes c times as far as its own step m, with c = T/m. Here the targets are those
of ``tried_targets``, so c runs over multiples of T/m. NExt's jump is five kept steps long whatever the target: here it
is taken ``NEXT_ALPHAS`` times (arXiv 2604.11446: 1.5, and alike from 0.5 to 2.5). To stay at the window's own step,
c = 1 or alpha = 0, is always among what is tried. A method is fitted once. The same random numbers score every
candidate; of equally good ones the nearest is kept. ``full_shrunk`` goes the other way: from the run's last step back
towards the base, which tells a gain by less from a gain by something else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlstride.extrapolation.controls import FIRST_UPDATE
from rlstride.extrapolation.linear import LINEAR, scaled_updates
from rlstride.extrapolation.logits import LOGITS
from rlstride.extrapolation.method import Method, Prediction, Predictor, Target
from rlstride.extrapolation.next_predictor import NEXT, NExt, NExtPredictor
from rlstride.study.plan import tried_targets
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Validated(Method):
    """Another method's prediction, at the distance that scores best on validation problems.

    Attributes:
        method: one that extrapolates to a step along the line through the base and the kept step that the
            entry's ``reach_through`` names.
    """

    method: Method

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "ValidatedPredictor":
        return ValidatedPredictor(self.method.fit(window, accuracies), window.steps[self.spec.reach_through or 0])


LINEAR_VALIDATED = Validated("linear_validated", LINEAR)
LOGITS_VALIDATED = Validated("logits_validated", LOGITS)
FIRST_UPDATE_VALIDATED = Validated("first_update_validated", FIRST_UPDATE)


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
        steps = {step / self.step: step for step in tried_targets(self.step, target.step)}  # by factor

        def at(factor: float) -> Prediction:
            return self.predictor.predict(replace(target, step=steps[factor]))

        found = best_of("factor", list(steps), at, target)
        return replace(found, info=found.info | {"target_step": target.step})


@dataclass(frozen=True)
class ValidatedNExt(Method):
    """NExt's jump, as many times as scores best on validation problems.

    Attributes:
        method: which NExt; its own alpha is not used.
    """

    name: str = "next_validated"
    method: NExt = NEXT

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "ValidatedNExtPredictor":
        return ValidatedNExtPredictor(self.method.fit(window, accuracies), self.spec.factors)


NEXT_VALIDATED = ValidatedNExt()


@dataclass(frozen=True)
class Shrunk(Method):
    """W* = W0 + f (WT - W0) for all tensors, T the run's last step: f = 1 is the run, the null of the others."""

    name: str = "full_shrunk"

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "ShrunkPredictor":
        return ShrunkPredictor(window, self.spec.factors)


FULL_SHRUNK = Shrunk()


@dataclass(frozen=True)
class ShrunkPredictor:
    """The line from the last step back to the base, and where it is tried."""

    run: Trajectory
    factors: Sequence[float]

    def predict(self, target: Target) -> Prediction:
        last = self.run.steps[-1]
        return best_of("factor", self.factors, lambda f: Prediction(scaled_updates(self.run, last, f)), target)


@dataclass(frozen=True)
class ValidatedNExtPredictor:
    """The jumps that NExt's networks have found, once for every alpha."""

    predictor: NExtPredictor
    alphas: Sequence[float]

    def predict(self, target: Target) -> Prediction:
        return best_of("alpha", self.alphas, lambda alpha: replace(self.predictor, alpha=alpha).predict(target), target)


def best_of(name: str, values: Sequence[float], at: Callable[[float], Prediction], target: Target) -> Prediction:
    """The prediction that scores best, with what was tried in its info and what that took in its costs.

    Args:
        name: of what is chosen, such as ``factor``.
        values: the candidates, the nearest first.
        at: the prediction at one of them.
        target: whose scorer decides.

    Raises:
        ValueError: the target has no scorer.
    """
    if target.score is None:
        raise ValueError("without a scorer there is nothing to choose by")
    scores = {value: target.score(at(value)) for value in values}
    best = max(values, key=lambda value: scores[value].accuracy)  # the first of equals
    found = at(best)
    info: dict[str, Any] = {
        "chosen": name,
        name: best,
        "validation_accuracy": scores[best].accuracy,
        "tried": {f"{value:.4g}": score.accuracy for value, score in scores.items()},
    }
    costs = {
        "scoring_seconds": sum(score.seconds for score in scores.values()),
        "tokens": sum(score.tokens for score in scores.values()),
    }
    return replace(found, info=found.info | info, costs=found.costs | costs)

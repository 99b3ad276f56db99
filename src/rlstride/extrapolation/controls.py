"""What stands beside the methods: the first update alone, AlphaRL without its regression, and a random direction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlstride.extrapolation.linear import scaled_updates
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.spectra.measures import frobenius
from rlstride.spectra.svd import truncated_svd
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.store import Trajectory

Direction = Literal["first", "rank_1", "random"]


@dataclass(frozen=True)
class Control(Method):
    """W0 + c E with c = (target step) / (step of E), where E is

    - ``first``: D(t1), the update of the first kept step, all tensors;
    - ``rank_1``: |D(m)|F u1 v1^T of the window's last kept step, in-scope matrices: what AlphaRL is without regression;
    - ``random``: a Gaussian direction with the norm of D(m), every tensor by itself.
    """

    direction: Direction

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "ControlPredictor":
        return ControlPredictor(window, self.direction)


FIRST_UPDATE = Control("first_update", "first")
NORM_ONLY = Control("norm_only", "rank_1")
RANDOM_DIRECTION = Control("random_direction", "random")


@dataclass(frozen=True)
class ControlPredictor:
    """The line through W0 along one of the directions."""

    window: Trajectory
    direction: Direction

    def predict(self, target: Target) -> Prediction:
        step = self.window.steps[0 if self.direction == "first" else -1]
        c = target.step / step
        deltas = {"first": scaled_updates, "rank_1": rank_1_updates, "random": random_updates}[self.direction]
        return Prediction(deltas(self.window, step, c), {"target_step": target.step, "factor": c})


def rank_1_updates(window: Trajectory, step: int, factor: float) -> Iterator[tuple[str, Tensor]]:
    """factor * |D(t)|F u1 v1^T for every in-scope matrix, float64; zero where D(t) is."""
    reader = UpdateReader(window)
    for weight in reader.in_scope:
        D = reader.update(weight, step)
        found = truncated_svd(D, 1)
        u, v = found.u[:, 0].double(), found.v[:, 0].double()
        yield weight.name, factor * float(frobenius(D)) * float(found.s[0] > 0) * torch.outer(u, v)


def random_updates(window: Trajectory, step: int, factor: float) -> Iterator[tuple[str, Tensor]]:
    """A Gaussian direction of norm factor * |D(t)|F for every tensor, float64; the same one for the same run."""
    reader = UpdateReader(window)
    for weight in reader.weights:
        generator = torch.Generator().manual_seed(window.seed_for(weight.name))
        noise = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
        norm = float((reader.stored(weight, step).double() - reader.stored(weight, 0).double()).norm())
        yield weight.name, noise * (factor * norm / float(noise.norm()))

"""The verified stride: RL for a few steps, then a jump along their movement, as far as held-out problems confirm it.

A is where the weights were when the window began, B where they are now. Candidates are B + (c - 1) P(B - A): c = 1 is B
itself, and P the identity or the rank-1 part of every matrix. What a candidate gains over B is known with an error,
either from its own answers to held-out problems, or from B's answers, weighted by how much likelier the candidate is
to give them (importance sampling). A search takes the factor with the largest gain that is beyond its error, and adapts
the next one to what it found. A run searches dozens of times, and where there is nothing to find luck confirms one
search in ten at a level of 0.1: the level adapts as well (alpha-investing).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from scipy.special import ndtri, stdtr
from torch import Tensor

from rlstride.config.stride import Along, Stride
from rlstride.spectra.svd import truncated_svd
from rlstride.stride.alpha_investing import AlphaInvesting

_SMALLEST_REACH = 0.25  # of a window's movement: below it a jump is not worth its search


@dataclass(frozen=True)
class GainEstimate:
    """What is known of a candidate.

    Attributes:
        gain: its mean score less that of B, on the same problems.
        error: standard error of the gain.
        problems: from which both are estimated.
        overlap: the share of the answers that weighing them leaves (effective sample size over n); 1 where the
            candidate gave answers of its own.
    """

    gain: float
    error: float
    problems: int
    overlap: float = 1.0

    @property
    def p_value(self) -> float:
        """Of a one-sided t-test that nothing is gained."""
        if self.gain <= 0 or not math.isfinite(self.error):
            return 1.0
        return float(stdtr(self.problems - 1, -self.gain / self.error)) if self.error else 0.0


def paired_gain(scores: Tensor, at_end: Tensor) -> GainEstimate:
    """From a candidate's own scores and those of B on the same problems, (n,) each."""
    differences = (scores - at_end).double()
    return GainEstimate(float(differences.mean()), _error_of_mean(differences), len(differences))


def weighted_gain(log_ratios: Tensor, rewards: Tensor, group: int, lowest: float = 0.0) -> GainEstimate:
    """From the answers of B: E_c[r] - E_B[r] = E_B[(w - 1) (r - lowest)], w the likelihood ratio.

    It is cautious: what a candidate says and B never said has no weight here, and so counts as the lowest reward. A
    baseline of the mean reward would have less noise, and count the unseen as average: where RL oscillates across a
    narrow valley, that overlooks jumps that lose a quarter of the accuracy.

    Args:
        log_ratios: log w of whole completions, (n,); those of completions with the lowest reward are not read.
        rewards: r of the same completions, (n,).
        group: completions of one problem, which stand side by side; the error is that over problems.
        lowest: the reward of an answer that is worth nothing.
    """
    worth = rewards.double() - lowest
    weights = log_ratios.double().exp()
    by_problem = ((weights - 1) * worth).view(-1, group).mean(dim=1)
    read = weights[worth != 0]
    overlap = float(read.sum().square() / (len(read) * read.square().sum())) if len(read) else 1.0
    return GainEstimate(float(by_problem.mean()), _error_of_mean(by_problem), len(by_problem), overlap)


class Movement:
    """The way of some tensors from A to B, and the points on it that they can be put at.

    Args:
        tensors: a model's, which are at B.
        start: A, in the same order, on any device.
        along: P. Tensors that are no matrices move in full.
    """

    def __init__(self, tensors: Sequence[Tensor], start: Sequence[Tensor], along: Along) -> None:
        self._tensors = tensors
        self._end = [tensor.detach().clone() for tensor in tensors]
        self._direction = [direction(B - A.to(B.device), along) for A, B in zip(start, self._end, strict=True)]

    @torch.no_grad()
    def move_to(self, factor: float) -> None:
        """Puts the tensors at a factor c; 1 is B to the bit."""
        for place, B, D in zip(self._tensors, self._end, self._direction, strict=True):
            place.copy_(B if factor == 1 else B + (factor - 1) * D)


def direction(D: Tensor, along: Along) -> Tensor:
    """P(D): D itself; or, where it is a matrix, |D|F u1 v1^T (``rank_1``) or s1 u1 v1^T (``rank_1_unscaled``)."""
    if along == "full" or D.dim() != 2 or not D.any():
        return D
    found = truncated_svd(D.float(), 1)
    size = found.s[0] if along == "rank_1_unscaled" else torch.linalg.norm(D.float())
    return (size * torch.outer(found.u[:, 0], found.v[:, 0])).to(D)


@dataclass(frozen=True)
class Found:
    """What a line search ends with.

    Attributes:
        factor: where the weights go on from; 1 where no jump was confirmed.
        tried: what was found of every candidate, by factor, in the order of the trials.
    """

    factor: float
    tried: dict[float, GainEstimate]

    @property
    def gain(self) -> float:
        """The estimated gain of the jump; 0 where there was none, or nothing to estimate it from."""
        return self.tried[self.factor].gain if self.factor in self.tried else 0.0


@dataclass
class LineSearch:
    """Chooses how far to jump, window after window, and when to look again.

    Attributes:
        settings: the limits.
        reach: how far beyond B the next search tries first, in multiples of the window's movement (c - 1).
        window: steps of RL before the next search.
        investing: gives the level of its tests.
    """

    settings: Stride
    reach: float = field(init=False)
    window: int = field(init=False)
    investing: AlphaInvesting = field(init=False)

    def __post_init__(self) -> None:
        self.reach = self.settings.first_reach
        self.window = self.settings.window
        self.investing = AlphaInvesting(self.settings.significance)

    def run(self, evidence: Callable[[float], GainEstimate]) -> Found:
        """Goes on in factors of ``growth`` while a candidate is confirmed and better than the one before; where the
        first is not, tries a shorter one instead.

        A test is paid for where its candidate is the first, or the one instead of it. Those that follow a confirmed
        one are tested at its level: tests in a fixed order, each after the one before has passed, err no more often
        than the first.

        Args:
            evidence: puts the weights at a factor c and says what is known of it; each is asked for once.
        """
        tried: dict[float, GainEstimate] = {}

        def confirmed(reach: float, level: float) -> bool:
            found = tried.setdefault(1 + reach, evidence(1 + reach))
            return found.p_value < level and found.overlap >= self.settings.overlap

        def bet_on(reach: float) -> bool:
            won = confirmed(reach, self.investing.level)
            self.investing.settle(won)
            return won

        growth, reach, best = self.settings.growth, self.reach, 0.0
        level = self.investing.level
        if bet_on(reach):
            best = reach
            while reach * growth <= self.settings.longest_reach:
                reach *= growth
                if not confirmed(reach, level) or tried[1 + reach].gain <= tried[1 + best].gain:
                    break
                best = reach
        else:
            shorter = reach / growth**2
            if shorter >= _SMALLEST_REACH and bet_on(shorter):
                best = shorter
        self._adapt(best)
        return Found(1 + best, tried)

    def take_back(self) -> None:
        """After a jump that turned out to lose: searches become shorter, rarer and stricter."""
        self.investing.refute()
        self._shorten()

    def _shorten(self) -> None:
        """Half as far; at last, half as often."""
        if self.reach > _SMALLEST_REACH:
            self.reach = max(_SMALLEST_REACH, self.reach / 2)
        else:
            self.window = min(2 * self.window, self.settings.longest_window)

    def _adapt(self, taken: float) -> None:
        if taken:
            self.reach, self.window = taken, self.settings.window
        else:
            self._shorten()


@dataclass(frozen=True)
class ScoreLevel:
    """The mean score of some problems, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, scores: Tensor) -> "ScoreLevel":
        """Of scores (n,), one for each problem."""
        return cls(float(scores.double().mean()), _error_of_mean(scores.double()))

    def is_below(self, other: "ScoreLevel", significance: float) -> bool:
        """Whether it is below another level, of other problems, beyond both errors: a one-sided z-test."""
        fall, error = other.mean - self.mean, math.hypot(self.error, other.error)
        return fall > 0 and fall >= -float(ndtri(significance)) * error


def _error_of_mean(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf

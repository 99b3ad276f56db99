"""The next batch of rollouts as the held-out problems of a stride: validation that training needs anyway."""

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from rlstride.errors import RequestError
from rlstride.extras import require_versions
from rlstride.rollouts import Rollouts, token_logps, total_rewards
from rlstride.stride.callback import StrideCallback
from rlstride.stride.line_search import GainEstimate, Movement, ScoreLevel, paired_gain, weighted_gain


@dataclass(frozen=True)
class _Draw:
    """A batch of rollouts.

    Attributes:
        rollouts: what the trainer makes of them, (B, ...) of this process.
        rewards: of all processes' completions, those of a problem side by side, (n,).
        tokens: that were sampled, of all processes.
    """

    rollouts: Rollouts
    rewards: Tensor
    tokens: float


@dataclass(frozen=True)
class _Snapshot:
    """What a draw changes in a trainer: what it has noted for the log, and the random numbers."""

    metrics: dict[str, list[float]]
    logs: Any
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def of(cls, trainer: Any) -> "_Snapshot":
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        noted = copy.deepcopy(trainer._metrics["train"]), copy.deepcopy(trainer._logs)
        return cls(*noted, torch.get_rng_state(), cuda)

    def restore(self, trainer: Any) -> None:
        trainer._metrics["train"], trainer._logs = copy.deepcopy(self.metrics), copy.deepcopy(self.logs)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


class NextBatch:
    """Validates on the prompts that the next step is about to train on.

    They are held out as long as the run has not seen them yet, that is, in its first epoch. With ``verify: weights``
    the weights in hand answer them as ever, candidates cost a forward pass over these answers, and the step trains on
    them, off-policy by the jump, as the importance ratio of its loss takes into account. With ``verify: rollouts``
    every candidate answers them, from the same state of the random numbers, and the step trains on the answers of the
    one chosen.

    Args:
        trainer: TRL's GRPOTrainer, RLOOTrainer, or one built on them.

    Raises:
        ExtraError: TRL is of a version whose private methods were not tested: a jump could be judged by wrong numbers.
    """

    def __init__(self, trainer: Trainer) -> None:
        require_versions("train", "trl")
        self.trainer: Any = trainer
        self._callback: StrideCallback | None = None

    @property
    def updates_per_step(self) -> int:
        """The trainer's global steps that are made from one batch of rollouts."""
        args = self.trainer.args
        return max(1, int(args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps))

    def serve(self, callback: StrideCallback) -> None:
        """Puts the search between the trainer and its drawing of rollouts."""
        self._callback = callback
        self._draw_rollouts = self.trainer._generate_and_score_completions
        self.trainer._generate_and_score_completions = self._draw_and_search

    def release(self) -> None:
        """Leaves the trainer as it was."""
        if self._callback is not None:
            del self.trainer._generate_and_score_completions  # the instance's: the class's is back
            self._callback = None

    def _draw_and_search(self, inputs: Any) -> Rollouts:
        callback, trainer = self._callback, self.trainer
        assert callback is not None
        if not trainer.model.training:  # an evaluation of the trainer's own
            rollouts: Rollouts = self._draw_rollouts(inputs)
            return rollouts
        by_rollouts = callback.is_due and callback.settings.verify == "rollouts"
        before = _Snapshot.of(trainer) if by_rollouts else None
        drawn = self._draw(inputs)
        level = ScoreLevel.of(self._by_problem(drawn))
        if callback.watch(level):
            self._reload_engine()
            again = self._draw(inputs)
            return self._with_tokens(again.rollouts, drawn.tokens + again.tokens)
        if not callback.is_due:
            return drawn.rollouts
        if before is not None:
            return self._search_by_rollouts(callback, inputs, drawn, level, before)
        return self._search_by_weights(callback, drawn, level)

    def _search_by_weights(self, callback: StrideCallback, drawn: _Draw, level: ScoreLevel) -> Rollouts:
        """Candidates read only the answers that were worth something: the others add nothing to a gain."""
        began = time.perf_counter()
        trainer, rollouts, lowest = self.trainer, drawn.rollouts, callback.settings.lowest_reward
        worth = drawn.rewards != lowest  # (n,)
        own = len(rollouts["completion_ids"])  # B
        first = trainer.accelerator.process_index * own
        is_read = worth[first : first + own]  # (B,)
        rows, others = is_read.nonzero()[:, 0], (~is_read).nonzero()[:, 0]
        noted = rollouts.get("old_per_token_logps")
        old = self._token_logps(rollouts, rows) if noted is None else noted[rows]  # (rows, T)
        mask = (rollouts["completion_mask"] * rollouts.get("tool_mask", 1))[rows]

        def evidence(factor: float, movement: Movement) -> GainEstimate:
            movement.move_to(factor)
            ratios = torch.zeros_like(rollouts["completion_mask"][:, 0], dtype=torch.float32)  # (B,)
            ratios[rows] = ((self._token_logps(rollouts, rows) - old) * mask).sum(dim=1)
            ratios = trainer.accelerator.gather(ratios).cpu()  # (n,)
            return weighted_gain(ratios, drawn.rewards, trainer.num_generations, lowest)

        if callback.search(evidence, level, began).factor != 1:
            self._reload_engine()
            if noted is None and "old_logps" not in rollouts:  # RLOO's own, of whole completions
                rest = callback.before_jump(lambda: self._token_logps(rollouts, others))
                rollouts["old_per_token_logps"] = torch.cat([old, rest])[torch.cat([rows, others]).argsort()]
        return rollouts

    def _search_by_rollouts(
        self, callback: StrideCallback, inputs: Any, drawn: _Draw, level: ScoreLevel, before: _Snapshot
    ) -> Rollouts:
        draws = {1.0: (drawn, _Snapshot.of(self.trainer))}
        at_end = self._by_problem(drawn)

        def evidence(factor: float, movement: Movement) -> GainEstimate:
            movement.move_to(factor)
            self._reload_engine()
            before.restore(self.trainer)
            found = self._draw(inputs)
            draws[factor] = found, _Snapshot.of(self.trainer)
            return paired_gain(self._by_problem(found), at_end)

        chosen, after = draws[callback.search(evidence, level).factor]
        self._reload_engine()
        after.restore(self.trainer)
        return self._with_tokens(chosen.rollouts, sum(draw.tokens for draw, _ in draws.values()))

    def _draw(self, inputs: Any) -> _Draw:
        trainer, seen = self.trainer, list[Tensor]()
        calculate = trainer._calculate_rewards

        def calculate_and_see(*arguments: Any) -> Tensor:
            rewards: Tensor = calculate(*arguments)  # (n, functions)
            seen.append(total_rewards(trainer, rewards))
            return rewards

        trainer._calculate_rewards = calculate_and_see
        try:
            rollouts = self._draw_rollouts(inputs)
        finally:
            del trainer._calculate_rewards
        # A trainer that puts its batch together from several draws (DAPO) says what its rows were rewarded with.
        rewards = rollouts.get("row_rewards", seen[0])
        noted = trainer._metrics["train"].get("sampled_tokens")
        sampled = rollouts["completion_mask"].sum()
        tokens = noted[-1] if noted else trainer.accelerator.reduce(sampled, reduction="sum")
        return _Draw(rollouts, rewards.double().cpu(), float(tokens))

    def _by_problem(self, drawn: _Draw) -> Tensor:
        """Mean reward of every problem's completions."""
        return drawn.rewards.view(-1, self.trainer.num_generations).mean(dim=1)

    def _token_logps(self, rollouts: Rollouts, rows: Tensor) -> Tensor:
        """log-probabilities of the sampled tokens of some rows under the weights in hand, (rows, T)."""
        if "pixel_values" in rollouts:
            raise RequestError("stride: images cannot be reweighted; use verify: rollouts")
        return token_logps(self.trainer, self.trainer.model, rollouts, rows)

    def _with_tokens(self, rollouts: Rollouts, tokens: float) -> Rollouts:
        """Notes the tokens of all draws of this step, which the batch does not show."""
        self.trainer._metrics["train"]["sampled_tokens"] = [tokens]
        return rollouts

    def _reload_engine(self) -> None:
        """Has a vLLM engine load the weights anew, though the step is the same."""
        self.trainer._last_loaded_step = -1

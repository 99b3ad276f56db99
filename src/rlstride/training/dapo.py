"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, a token-level loss, dynamic sampling, overlong punishment.

Equation numbers are the paper's. TRL expresses the clip (eq. 10), the loss (eq. 12) and the punishment (eq. 13); the
dynamic sampling (eq. 11) is here.
"""

import math
import random
from collections import defaultdict
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from rlstride.config.algorithms import DAPO
from rlstride.errors import RequestError
from rlstride.rollouts import total_rewards
from rlstride.training.rewards import RewardTerm, reward_terms
from rlstride.training.run import Run, policy_arguments, rollout_arguments

Batch = dict[str, torch.Tensor]
_PADDED_LEFT = ("prompt_ids", "prompt_mask")


def build(run: Run[DAPO]) -> Trainer:
    """The overlong buffer lies beyond the task's longest solution, so that only what cannot be right is punished.

    It takes the place of a study's own ``overlong`` term.
    """
    algorithm = run.algorithm
    longest = run.max_completion_tokens + algorithm.overlong_buffer
    rewards = run.training.rewards.model_copy(update={"overlong": None})
    terms = reward_terms(run.task, rewards, run.max_completion_tokens)
    terms.append(RewardTerm(get_soft_overlong_punishment(longest, algorithm.overlong_buffer), 1.0))
    arguments = rollout_arguments(run) | {
        "max_completion_length": longest,
        "reward_weights": [term.weight for term in terms],
    }
    return DynamicSamplingTrainer(
        **policy_arguments(run),
        reward_funcs=[term.function for term in terms],
        args=GRPOConfig(
            **arguments, epsilon_high=algorithm.epsilon_high, beta=0.0, loss_type="dapo", scale_rewards="group"
        ),
        max_rounds=algorithm.max_rounds,
    )


class DynamicSamplingTrainer(GRPOTrainer):
    """A GRPO trainer whose batches hold informative groups: prompts solved by some of their completions, not by all.

    Groups that are not are replaced by those of further prompts, drawn from the training data at random, until the
    batch is full or ``max_rounds`` draws are made; what then is missing is filled with the first of the others, whose
    advantages are zero (but for overlong punishments). One process only: it counts the groups that it draws itself.

    What is logged (``rewards/*``, ``completions/*``) is of the step's first draw, the policy's own performance on
    unfiltered prompts, so that it compares with the other algorithms' curves. ``sampled_tokens`` counts all draws.

    Args:
        max_rounds: draws of prompts in a step, the first one included.
        **arguments: those of GRPOTrainer; the first reward function is the verifier's verdict, 0 or 1.
    """

    def __init__(self, *, max_rounds: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.accelerator.num_processes > 1:
            raise RequestError(f"dapo: dynamic sampling needs one process, not {self.accelerator.num_processes}")
        self.max_rounds = max_rounds
        self._informative: list[bool] = []  # of the groups of the latest draw

    def _calculate_rewards(self, *arguments: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(*arguments)  # (B, number of reward functions)
        self._informative = informative_groups(rewards[:, 0], self.num_generations)
        self._row_rewards = total_rewards(self, rewards)  # (B,)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        wanted = len(inputs) // self.num_generations
        draws = [self._rewarded_draw(inputs)]
        informative = [self._informative]
        logged = self._metrics["train"]
        while sum(map(sum, informative)) < wanted and len(draws) < self.max_rounds:
            count = groups_to_draw(wanted, informative)
            self._metrics["train"] = defaultdict(list)  # of a later draw, and left out of the log
            draws.append(self._rewarded_draw(self._further_prompts(count, len(draws))))
            informative.append(self._informative)
            logged["num_tokens"] = self._metrics["train"]["num_tokens"]
        self._metrics["train"] = logged
        logged["sampled_tokens"].append(float(sum(int(draw["completion_mask"].sum()) for draw in draws)))
        logged["sampling_rounds"].append(float(len(draws)))
        logged["informative_groups"].append(min(wanted, sum(map(sum, informative))) / wanted)
        kept = kept_groups([flag for flags in informative for flag in flags], wanted)
        return take_groups(draws, kept, self.num_generations, self._tokenizer.pad_token_id)

    def _rewarded_draw(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A draw, with what each of its completions was rewarded with, (B,)."""
        draw: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return draw | {"row_rewards": self._row_rewards}

    def _further_prompts(self, count: int, draw: int) -> list[dict[str, Any]]:
        """Rows of the training data, each repeated for its group; the same ones in a resumed run."""
        rng = random.Random(f"{self.args.seed}/{self.state.global_step}/{draw}")
        rows = [self.train_dataset[index] for index in rng.sample(range(len(self.train_dataset)), count)]
        return [row for row in rows for _ in range(self.num_generations)]


def informative_groups(solved: torch.Tensor, group_size: int) -> list[bool]:
    """Which groups have 0 < |right completions| < group size (eq. 11).

    Args:
        solved: the verifier's verdicts, 0 or 1, group after group (B).
    """
    right = solved.view(-1, group_size).sum(dim=1)
    flags: list[bool] = ((right > 0) & (right < group_size)).tolist()
    return flags


def groups_to_draw(wanted: int, informative: list[list[bool]]) -> int:
    """As many further groups as will fill the batch at the rate of informative ones so far; at most a whole batch."""
    found, drawn = sum(map(sum, informative)), sum(map(len, informative))
    return wanted if found == 0 else min(wanted, math.ceil((wanted - found) * drawn / found))


def kept_groups(informative: list[bool], wanted: int) -> list[int]:
    """The first ``wanted`` informative groups, and where there are fewer, the first of the others."""
    by_use = sorted(range(len(informative)), key=lambda group: not informative[group])  # sorted() keeps the order
    return sorted(by_use[:wanted])


def take_groups(draws: list[dict[str, Any]], groups: list[int], group_size: int, pad_id: int) -> dict[str, Any]:
    """The batch that consists of some groups of several draws, counted through from the first draw to the last.

    Args:
        draws: tensors by name, (B) or (B, T), as GRPOTrainer makes them: prompts padded left, all else right. A scalar
            ``num_items_in_batch`` is counted anew: the tokens of the completions taken.
        groups: positions of the groups to take.
        pad_id: the token that prompts and completions are padded with.
    """
    rows = [group * group_size + member for group in groups for member in range(group_size)]
    batch = {}
    for name in draws[0].keys() - {"num_items_in_batch"}:
        tensors = [row for draw in draws for row in draw[name]]
        if tensors[0].dim() == 0:  # one value for each completion
            stacked = torch.stack(tensors)
        else:
            side = "left" if name in _PADDED_LEFT else "right"
            value = pad_id if name.endswith("_ids") else 0
            stacked = pad_sequence(tensors, batch_first=True, padding_side=side, padding_value=value)
        batch[name] = stacked[rows]
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    return batch

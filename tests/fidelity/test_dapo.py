"""DAPO as arXiv 2503.14476 states it."""

from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.algorithms import DAPO
from rlstride.training.dapo import build, groups_to_draw, informative_groups, kept_groups, take_groups

LOW, HIGH, BUFFER = 0.2, 0.28, 4
SOLVED = ["T+58-99#9", "T+58-99#9", "G#9", "G#9"]
UNSOLVED = ["G#1", "G#2", "G#3", "G#4"]


def trainer_of(root: Path, max_rounds: int = 3) -> tuple[Any, Path]:
    algorithm = DAPO(trainer="dapo", learning_rate=1e-4, epochs=2, max_rounds=max_rounds, overlong_buffer=BUFFER)
    run = fixed.run_of(algorithm, root, steps=8)
    return build(run), run.base_folder


def draw_in_turn(trainer: Any, base: Path, draws: list[list[list[str]]]) -> list[list[str]]:
    """Has a trainer sample the given groups, draw after draw, and makes all further prompts one with the answer 9.

    Returns:
        a list that fills with the prompts of each draw.
    """
    prompts: list[list[str]] = []
    trainer.train_dataset = Dataset.from_list([{"prompt": "3+5-9=", "answer": "9"}] * len(trainer.train_dataset))
    remaining = iter(draws)
    generate = trainer._generate

    def generate_next(asked: list[str]) -> Any:
        prompts.append(asked)
        fixed.inject(trainer, base, next(remaining))
        return generate(asked)

    trainer._generate = generate_next
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return prompts


def test_loss_and_gradient_are_those_of_equations_8_and_12(tmp_path: Path) -> None:
    """Eq. 8 and 12: the mean over all tokens of the batch, not of each completion; the clip's upper range is higher."""
    trainer, base = trainer_of(tmp_path)
    batch, old, _ = fixed.off_policy(trainer, base, scale=0.03)
    advantages = fixed.by_rollout(batch, base, "advantages").tolist()
    ratios = []

    def formula(policy: PreTrainedModel) -> Tensor:
        new = fixed.token_logps(policy, base)
        ratios.extend([(logps - old_logps).exp() for logps, old_logps in zip(new, old, strict=True)])
        terms = [fixed.clipped_objective(r, a, LOW, HIGH) for r, a in zip(ratios, advantages, strict=True)]
        return -torch.cat(terms).mean()

    loss = trainer.compute_loss(trainer.model, batch)
    fixed.assert_same_loss_and_gradient(trainer, loss, base, formula)
    assert 0.05 < fixed.share_clipped([ratio.detach() for ratio in ratios], advantages, LOW, HIGH) < 0.95


def test_advantages_are_total_rewards_normalised_within_their_group(tmp_path: Path) -> None:
    """Eq. 9. Rewards 1 0 0 0: mean 1/4, std 1/2; 1 1 1 0: mean 3/4, std 1/2."""
    trainer, base = trainer_of(tmp_path)
    advantages = fixed.by_rollout(fixed.collect(trainer, base), base, "advantages")
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5], abs=1e-3)


def test_what_is_longer_than_every_solution_is_punished_in_proportion(tmp_path: Path) -> None:
    """Eq. 13 with L_max = 13 + 4 and L_cache = 4: 0 up to 13 tokens, then -1/4, -2/4, -3/4, -1."""
    trainer, _ = trainer_of(tmp_path)
    _, punishment = trainer.reward_funcs
    assert fixed.TASK.max_completion_tokens == 13
    assert trainer.max_completion_length == 17
    lengths = [1, 13, 14, 15, 16, 17]
    assert punishment(completion_ids=[[0] * length for length in lengths]) == [0, 0, -0.25, -0.5, -0.75, -1]


def test_a_group_is_informative_when_some_of_its_completions_are_right_and_not_all() -> None:
    """Eq. 11: 0 < number of right ones < G."""
    solved = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1, 1], dtype=torch.float)
    assert informative_groups(solved, group_size=3) == [False, True, False]


def test_informative_groups_are_kept_first_and_others_only_fill_the_batch() -> None:
    assert kept_groups([True, False, True, True], wanted=2) == [0, 2]
    assert kept_groups([False, False, True, False], wanted=2) == [0, 2]
    assert kept_groups([False, False], wanted=2) == [0, 1]


def test_as_many_groups_are_drawn_as_will_fill_the_batch_at_the_rate_so_far() -> None:
    assert groups_to_draw(16, [[True] * 8 + [False] * 8]) == 16  # 8 are missing, and every second one is informative
    assert groups_to_draw(16, [[True] * 12 + [False] * 4]) == 6  # 4 / (3/4) = 5.3
    assert groups_to_draw(16, [[False] * 16]) == 16
    assert groups_to_draw(16, [[True] + [False] * 15]) == 16  # never more than a batch


def test_taken_groups_keep_their_tokens_under_the_padding_of_the_widest_draw() -> None:
    narrow = {
        "prompt_ids": torch.tensor([[5], [5]]),
        "prompt_mask": torch.ones(2, 1),
        "completion_ids": torch.tensor([[7, 8, 1], [9, 1, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "advantages": torch.tensor([1.0, -1.0]),
        "num_items_in_batch": torch.tensor(5),
    }
    wide = {
        "prompt_ids": torch.tensor([[3, 4], [3, 4], [0, 6], [0, 6]]),
        "prompt_mask": torch.tensor([[1, 1], [1, 1], [0, 1], [0, 1]]),
        "completion_ids": torch.tensor([[1], [1], [1], [1]]),
        "completion_mask": torch.ones(4, 1, dtype=torch.long),
        "advantages": torch.tensor([0.0, 0.0, 2.0, -2.0]),
        "num_items_in_batch": torch.tensor(4),
    }
    batch = take_groups([narrow, wide], groups=[0, 2], group_size=2, pad_id=0)
    assert batch["prompt_ids"].tolist() == [[0, 5], [0, 5], [0, 6], [0, 6]]
    assert batch["prompt_mask"].tolist() == [[0, 1], [0, 1], [0, 1], [0, 1]]
    assert batch["completion_ids"].tolist() == [[7, 8, 1], [9, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert batch["advantages"].tolist() == [1, -1, 2, -2]
    assert batch["num_items_in_batch"] == 7


def test_uninformative_groups_are_replaced_and_all_sampled_tokens_are_counted(tmp_path: Path) -> None:
    """The second prompt is solved by no completion; the further prompt that takes its place, by some. The log's reward
    is that of the first draw: 1 of 8."""
    trainer, base = trainer_of(tmp_path)
    prompts = draw_in_turn(trainer, base, [[fixed.COMPLETIONS[0], UNSOLVED], [["G#9", "T#1", "T#2", "T#3"]] * 2])
    batch = trainer._generate_and_score_completions(fixed.inputs())

    assert [len(asked) for asked in prompts] == [8, 8], "one of two groups was informative: two more are drawn for one"
    assert batch["advantages"].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5] * 2, abs=1e-3)
    tokens = batch["completion_mask"].sum(dim=1).tolist()
    assert tokens == [10, 10, 4, 4, 4, 4, 4, 4]
    assert batch["num_items_in_batch"] == sum(tokens)
    logged = trainer._metrics["train"]
    assert logged["sampled_tokens"] == [28 + 16 + 2 * 16]
    assert logged["rewards/verified/mean"] == [1 / 8]
    assert logged["completions/mean_length"] == [(28 + 16) / 8]
    assert logged["sampling_rounds"] == [2]


def test_after_the_last_round_uninformative_groups_fill_the_batch_with_no_advantage(tmp_path: Path) -> None:
    trainer, base = trainer_of(tmp_path, max_rounds=2)
    prompts = draw_in_turn(trainer, base, [[SOLVED, UNSOLVED], [UNSOLVED, UNSOLVED]])
    batch = trainer._generate_and_score_completions(fixed.inputs())
    assert len(prompts) == 2
    assert batch["advantages"].tolist() == [0] * 8
    assert trainer._metrics["train"]["informative_groups"] == [0]


def test_further_prompts_depend_on_seed_step_and_round_alone(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path / "one")
    resumed, _ = trainer_of(tmp_path / "two")
    torch.rand(3)
    first = trainer._further_prompts(2, draw=1)
    assert resumed._further_prompts(2, draw=1) == first
    assert [row["prompt"] for row in first[:4]] == [first[0]["prompt"]] * 4
    assert trainer._further_prompts(2, draw=2) != first
    trainer.state.global_step = 2
    assert trainer._further_prompts(2, draw=1) != first

"""The terms of the reward: each by itself, their weighted sum in every trainer, the verifier's own mean in the log."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest

from rlstride.config.algorithms import ALGORITHMS
from rlstride.config.rewards import Rewards
from rlstride.errors import RequestError
from rlstride.training.rewards import reward_terms

LONGEST, BUFFER = fixed.TASK.max_completion_tokens, 5  # 13 tokens: punished from the ninth on
POLICY_GRADIENTS = ("grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "gspo", "dapo")
TERMS: dict[str, Any] = {
    "verifier": 2.0,
    "format": {"pattern": "T.*", "weight": 0.5},
    "overlong": {"buffer": BUFFER, "weight": 0.25},
    "functions": {"test_reward_terms:answers_six": 0.125},
}


def answers_six(completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    """A user's function in TRL's form: None where it does not apply."""
    return [
        None if expected == "9" else float(text.endswith("#6"))
        for text, expected in zip(completions, answer, strict=True)
    ]


def verified(completions: list[str], **columns: Any) -> list[float]:
    """Has the name under which the verifier's verdict is logged."""
    return [0.0] * len(completions)


def punishment(completion: str) -> float:
    """Eq. 13 of arXiv 2503.14476, the end-of-sequence token counted."""
    over = len(completion) + 1 - (LONGEST - BUFFER)
    return -min(max(over / BUFFER, 0.0), 1.0)


def test_each_term_says_of_a_completion_what_it_should() -> None:
    terms = reward_terms(fixed.TASK, Rewards.model_validate(TERMS), fixed.TASK.max_completion_tokens)
    assert [term.weight for term in terms] == [2.0, 0.5, 0.25, 0.125]
    prompt, answer = fixed.PROBLEMS[1]
    texts = [*fixed.COMPLETIONS[1], "T+58-99#9", "T\nT" + "+" * LONGEST]  # 13, 4, 7, 13, 10 and 17 tokens
    said = [
        term.function(
            prompts=[prompt] * len(texts),
            completions=texts,
            completion_ids=[[0] * (len(text) + 1) for text in texts],
            answer=[answer] * len(texts),
        )
        for term in terms
    ]
    assert said[0] == [1, 1, 1, 0, 0, 0]
    assert said[1] == [1, 0, 1, 0, 1, 1], "the whole completion matches, over the ends of its lines"
    assert said[2] == pytest.approx([-1, 0, 0, -1, -0.4, -1])
    assert said[3] == [1, 1, 1, 0, 0, 0]


def test_the_verdict_alone_counts_where_nothing_is_said() -> None:
    [term] = reward_terms(fixed.TASK, Rewards(), 8)
    assert term.weight == 1


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
def test_every_trainer_sums_the_weighted_terms_and_logs_the_verifiers_own_mean(name: str, tmp_path: Path) -> None:
    """Of the eight completions half are right; of the four of the second group alone, three end in #6."""
    kind = ALGORITHMS[name]
    run = fixed.run_of(kind.section.model_validate({"trainer": name, "learning_rate": 1e-4}), tmp_path, steps=8)
    rewards = Rewards.model_validate(TERMS)
    trainer = kind.load()(
        replace(run, training=run.training.model_copy(update={"rewards": rewards})),
    )
    fixed.collect(trainer, run.base_folder)
    logged = trainer._metrics["train"]
    texts = [text for group in fixed.COMPLETIONS for text in group]
    assert logged["rewards/verified/mean"][0] == 4 / 8
    assert logged["rewards/format_matched/mean"][0] == 4 / 8
    assert logged["rewards/answers_six/mean"][0] == 3 / 4
    total = 2 * 4 / 8 + 0.5 * 4 / 8 + 0.125 * 3 / 8
    if name != "dapo":  # its own buffer lies beyond the longest completion, where none of these reaches
        total += 0.25 * sum(map(punishment, texts)) / 8
    assert logged["reward"][0] == pytest.approx(total)


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ({"functions": {"test_reward_terms:nothing": 1}}, "functions: 'test_reward_terms:nothing' cannot be imported"),
        ({"functions": {"test_reward_terms:verified": 1}}, "verified is the verifier's name in the log"),
        ({"overlong": {"buffer": LONGEST + 1}}, f"a buffer of {LONGEST + 1} tokens, but completions of chain have"),
    ],
)
def test_what_is_wrong_with_a_term_is_one_sentence(rewards: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestError, match=f"training: rewards: .*{why}"):
        reward_terms(fixed.TASK, Rewards.model_validate(rewards), fixed.TASK.max_completion_tokens)


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ({"format": {"pattern": "("}}, "the pattern '\\(' is wrong"),
        ({"functions": {"brevity": 1}}, "match pattern"),
        ({"overlong": {"buffer": 0}}, "greater than or equal to 1"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(rewards: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rewards.model_validate(rewards)

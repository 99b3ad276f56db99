"""Texts that end a completion: in rollouts, rewards and scores alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluation_exact import SAMPLES, folder, scores, study, tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, set_seed

from rlstride.config.algorithms import GRPO
from rlstride.config.training import Training
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.generation import tokens_to_stop
from rlstride.study.study import Study
from rlstride.tasks import build_task
from rlstride.tasks.problems import cut
from rlstride.training.registry import build_trainer
from rlstride.training.run import Run

__all__ = ["folder", "study", "tokenizer"]  # the fixtures
# Sums up to their first 0: of 10 a beginning; of 0 nothing, which is no answer.
UP_TO_ZERO = {"answer": "{{ answer.split('0')[0] }}", "stop": ["0"]}


def test_a_completion_is_cut_at_the_first_of_several_texts() -> None:
    assert cut("a b\n\nQ: c", ["Q:", "\n\n"]) == "a b"
    assert cut("a b", ["Q:"]) == "a b"
    assert cut("Q: a", ["Q:"]) == ""


def test_tokens_are_kept_up_to_those_that_write_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.convert_tokens_to_ids(["4", "2", "42", "=", "2", "4"])
    assert tokens_to_stop(tokenizer, ids, ["2="]) == 4  # of "4242=24"
    assert tokens_to_stop(tokenizer, ids, ["=2", "24"]) == 3
    assert tokens_to_stop(tokenizer, ids, ["22"]) == 6
    assert tokens_to_stop(tokenizer, [], ["22"]) == 0


def test_exact_scoring_with_a_stop_is_what_sampling_tends_to(
    study: Callable[..., Study], folder: Path, tmp_path: Path
) -> None:
    _, drawn = scores(study(UP_TO_ZERO), folder, tmp_path / "drawn.parquet")
    _, read = scores(study(UP_TO_ZERO, scorer="exact"), folder, tmp_path / "read.parquet")
    _, without = scores(study({**UP_TO_ZERO, "stop": []}, scorer="exact"), folder, tmp_path / "without.parquet")
    for name in ("t1.0", "t0.6"):
        error = np.sqrt(read[name] * (1 - read[name]) / SAMPLES) + 1e-3
        assert (np.abs(drawn[name] - read[name]) < 4 * error).all()
    np.testing.assert_array_equal(read["greedy"], drawn["greedy"])
    assert (read["t1.0"] > without["t1.0"] + 0.05).any()  # what ends in 0 goes on to nothing else


def test_samples_end_with_the_text(study: Callable[..., Study], folder: Path) -> None:
    lm = Bench("cpu").load(parse_models([f"base@0={folder}"])[0])
    texts = [lm.tokenizer.decode(each.tokens) for each in lm.sample(["5+5="] * 200, 2.0, 4, ["0"])]
    assert any(len(text) > 1 and text.endswith("0") for text in texts)
    assert all("0" not in text[:-1] for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_rollouts_end_with_the_text_and_are_rewarded_without_it(
    study: Callable[..., Study], folder: Path, tmp_path: Path, shared: bool
) -> None:
    found = study(UP_TO_ZERO)
    task = build_task(found.spec.task, found.task)
    training = Training(steps=1, problems_per_step=60, completions_per_problem=2, share_prompts=shared)
    run = Run(folder, tmp_path / "state", task, training, GRPO(trainer="grpo", learning_rate=1e-3), 0, "cpu")
    set_seed(0)
    trainer: Any = build_trainer(run)
    draw, batches = trainer._generate_and_score_completions, []
    trainer._generate_and_score_completions = lambda inputs: batches.append((inputs, draw(inputs))) or batches[-1][1]
    trainer.train()
    ((inputs, rollouts),) = batches
    decode = AutoTokenizer.from_pretrained(folder).decode
    texts = [
        decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(rollouts["completion_ids"], rollouts["completion_mask"], strict=True)
    ]
    assert any(text.endswith("0") and len(text) > 1 for text in texts)
    assert all("0" not in text[:-1] for text in texts)
    right = [text.split("0")[0] == row["answer"] != "" for text, row in zip(texts, inputs, strict=True)]
    (reward,) = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert reward == pytest.approx(np.mean(right))
    assert 0 < reward < 1


def test_a_task_without_stops_is_hashed_as_before(study: Callable[..., Study]) -> None:
    assert "stop" not in study().task.model_dump()
    assert study(UP_TO_ZERO).task.model_dump()["stop"] == ["0"]

"""Supervised fine-tuning: the cross-entropy of right solutions."""

from pathlib import Path

import fixed_rollouts as fixed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.algorithms import SFT
from rlstride.tasks import Problem, split_of
from rlstride.training.sft import build, solution_dataset


def test_every_sequence_is_a_right_solution_of_a_training_problem(tmp_path: Path) -> None:
    run = fixed.run_of(SFT(trainer="sft", learning_rate=1e-4), tmp_path, steps=4)
    rows = list(solution_dataset(run))
    assert len(rows) == 4 * run.batch_size
    for row in rows:
        assert split_of(row["prompt"]) == "train"
        answer = str(eval(row["prompt"].removesuffix("=")) % 10)
        assert fixed.TASK.verify(Problem(row["prompt"], answer), row["completion"])
        assert fixed.TASK.format_of(row["completion"]) == "careful"


def test_the_loss_is_the_mean_cross_entropy_of_the_solutions_tokens(tmp_path: Path) -> None:
    """-1/N sum_i sum_t log pi(o_t | q, o_<t) over the N tokens of all solutions, ends included and prompts not."""
    run = fixed.run_of(SFT(trainer="sft", learning_rate=1e-4), tmp_path)  # one step: its batch is the whole dataset
    trainer = build(run)
    rows = list(solution_dataset(run))
    prompts = fixed.encode(run.base_folder, [row["prompt"] for row in rows], end=False)
    completions = fixed.encode(run.base_folder, [row["completion"] for row in rows], end=True)

    def formula(policy: PreTrainedModel) -> Tensor:
        logps = [
            fixed.completion_logits(policy, prompt, completion).log_softmax(-1)[range(len(completion)), completion]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return -torch.cat(logps).mean()

    trainer.model.train()
    [batch], tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=tokens)
    fixed.assert_same_loss_and_gradient(trainer, loss, run.base_folder, formula)

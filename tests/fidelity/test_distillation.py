"""Logit distillation as GKD (arXiv 2306.13649) and Hinton et al. (arXiv 1503.02531) state it."""

from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlstride.config.algorithms import Distillation
from rlstride.tasks import split_of
from rlstride.training.distillation import build, prompt_dataset
from rlstride.training.run import Run


def run_of(root: Path, teacher: Path, **options: Any) -> Run[Any]:
    algorithm = Distillation(trainer="distillation", learning_rate=1e-4, teacher=str(teacher), **options)
    return fixed.run_of(algorithm, root, teacher=teacher)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p, q) of each row of two tables of probabilities."""
    return (p * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_loss_and_gradient_are_the_generalised_jensen_shannon_divergence(tmp_path: Path, beta: float) -> None:
    """Eq. 2: beta KL(teacher, m) + (1 - beta) KL(student, m), m = beta teacher + (1 - beta) student; in its limits
    (section 2) KL(teacher, student) at 0 and KL(student, teacher) at 1. The mean over the tokens of the batch."""
    run = run_of(tmp_path, fixed.random_llama(tmp_path / "teacher", seed=1), beta=beta)
    trainer, base = build(run), run.base_folder
    teacher = AutoModelForCausalLM.from_pretrained(run.teacher_folder, dtype=torch.float32)
    prompts = fixed.encode(base, [prompt for prompt, _ in fixed.rollouts()], end=False)
    completions = fixed.encode(base, [text for _, text in fixed.rollouts()], end=True)

    def formula(student: PreTrainedModel) -> Tensor:
        divergences = []
        for prompt, completion in zip(prompts, completions, strict=True):
            p = fixed.completion_logits(teacher, prompt, completion).detach().softmax(-1)  # (T, V)
            q = fixed.completion_logits(student, prompt, completion).softmax(-1)  # (T, V)
            m = beta * p + (1 - beta) * q
            limits = {0.0: lambda p=p, q=q: kl(p, q), 1.0: lambda p=p, q=q: kl(q, p)}
            divergence = limits.get(beta, lambda p=p, q=q, m=m: beta * kl(p, m) + (1 - beta) * kl(q, m))
            divergences.append(divergence())
        return torch.cat(divergences).mean()

    loss = trainer.compute_loss(trainer.model, fixed.collect(trainer, base))
    fixed.assert_same_loss_and_gradient(trainer, loss, base, formula)


def test_the_completions_are_the_teachers_unless_the_student_is_to_write(tmp_path: Path) -> None:
    """Logits a thousand times as large make sampling greedy: who wrote a completion shows in its tokens."""
    folders = {}
    for name, seed in (("teacher", 1), ("base", 0)):
        folder = fixed.random_llama(tmp_path / name, seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            model.lm_head.weight.mul_(1000)
        folders[name] = (folder, model)
    teacher = folders["teacher"][0]

    for writer in ("teacher", "student"):
        trainer = build(run_of(tmp_path / writer, teacher, completions_from=writer))
        for name, model in (("base", trainer.model), ("teacher", trainer.teacher_model)):
            model.load_state_dict(folders[name][1].state_dict())
        trainer.model.train()
        batch = trainer._prepare_inputs(fixed.inputs())
        author = folders["teacher" if writer == "teacher" else "base"][1]
        for index in range(len(batch["prompt_ids"])):
            prompt = batch["prompt_ids"][index][batch["prompt_mask"][index].bool()].tolist()
            completion = batch["completion_ids"][index][batch["completion_mask"][index].bool()].tolist()
            assert fixed.completion_logits(author, prompt, completion).argmax(-1).tolist() == completion


def test_prompts_are_training_problems_one_for_each_completion(tmp_path: Path) -> None:
    run = run_of(tmp_path, fixed.random_llama(tmp_path / "teacher", seed=1))
    prompts = prompt_dataset(run)["prompt"]
    assert len(prompts) == run.batch_size
    assert {split_of(prompt) for prompt in prompts} == {"train"}

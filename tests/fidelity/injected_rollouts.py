"""Hand-made rollouts for the trainers that build() makes, and what an independent formula needs of them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer
from trl import RLOOTrainer

from rlstride.config.algorithms import ALGORITHMS, Optimisation
from rlstride.config.training import Training
from rlstride.study.load import load_study
from rlstride.tasks import build_task
from rlstride.training.run import Run

EPISODES = [  # prompt, completion, score: two of each prompt, of four lengths
    ("1+2=", "3", 1.0),
    ("1+2=", "1+2;4", 0.0),
    ("7-5+6=", "2;8", 1.0),
    ("7-5+6=", "", 0.0),
]


@dataclass(frozen=True)
class Episode:
    """One rollout without padding: whole sequence (P + T,), and how many of its tokens are the prompt's."""

    ids: Tensor
    prompt_tokens: int
    score: float

    def logps(self, model: PreTrainedModel) -> Tensor:
        """Log-probability of every sampled token under a model, (T,)."""
        logits = model(self.ids[None]).logits[0].log_softmax(-1)  # (P + T, vocabulary)
        sampled = logits[:-1].gather(1, self.ids[1:, None])[:, 0]  # (P + T - 1,)
        return sampled[self.prompt_tokens - 1 :]


def build_trainer(algorithm: Optimisation, base: Path, folder: Path, processes: int = 1) -> Trainer:
    """The trainer of an algorithm entry as build() makes it, with the episodes in place of sampling and verifying."""
    study = load_study("config/config.yaml")
    training = Training(steps=1, problems_per_step=2, completions_per_problem=2)
    task = build_task(study.spec.task, study.task)
    run = Run(
        base_folder=base,
        state_folder=folder,
        task=task,
        training=training,
        algorithm=algorithm,
        seed=0,
        device="cpu",
        processes=processes,
    )
    trainer = ALGORITHMS[algorithm.trainer].load()(run)
    tokenizer = trainer.processing_class

    def share(prompts: list[str]) -> list[tuple[str, str, float]]:
        start = trainer.accelerator.process_index * len(prompts)
        return EPISODES[start : start + len(prompts)]

    def rollouts(prompts: list[str], _: Any) -> dict[str, list[list[int]] | None]:
        mine = share(prompts)
        return {
            "prompt_ids": [tokenizer(prompt).input_ids for prompt, _, _ in mine],
            "completion_ids": [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for _, text, _ in mine],
            "logprobs": None,
        }

    trainer.rollout_func = rollouts
    if isinstance(trainer, RLOOTrainer):  # it has no place for a rollout function
        trainer._tokenize_prompts = lambda prompts: (rollouts(prompts, None)["prompt_ids"], None, {})
        trainer._generate_single_turn = lambda prompt_ids, *_: rollouts(prompt_ids, None)["completion_ids"]
    trainer.reward_funcs = [lambda prompts, **_: [score for _, _, score in share(prompts)]]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the training loop sets it
    return trainer


def draw_rollouts(trainer: Trainer) -> dict[str, Tensor]:
    """The batch that the trainer makes of the episodes, in their order."""
    return trainer._generate_and_score_completions([{"prompt": prompt, "answer": ""} for prompt, _, _ in EPISODES])


def episodes(base: Path) -> list[Episode]:
    """The episodes as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return [
        Episode(
            torch.tensor([*tokenizer(prompt + text).input_ids, tokenizer.eos_token_id]),
            len(tokenizer(prompt).input_ids),
            score,
        )
        for prompt, text, score in EPISODES
    ]


def disturb(model: torch.nn.Module, size: float, seed: int) -> None:
    """Adds noise to every weight, so that sampling, training and base models differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def same_model(base: Path, trained: torch.nn.Module | None = None) -> PreTrainedModel:
    """A plain transformers model in evaluation mode: the base, or with the weights of a trainer's model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if trained is not None:
        model.load_state_dict(copy.deepcopy(trained.state_dict()))
    return model.eval()


def normalised(per_episode: list[Tensor]) -> list[Tensor]:
    """Less the mean, over the standard deviation, of all tokens together."""
    flat = torch.cat(per_episode)
    return list(((flat - flat.mean()) / flat.std(correction=0)).split([len(values) for values in per_episode]))


def clipped_policy_losses(logps: Tensor, old: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) of every token (arXiv 1707.06347, eq. 7)."""
    ratio = (logps - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)

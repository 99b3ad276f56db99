"""A fixed batch of rollouts on a tiny random llama: what the papers' formulas are written with, in plain torch.

The trainers under test are the real ones, made by rlstride's own ``build``; only the sampling is replaced, by hand-made
completions, so that lengths, rewards and advantages are known. The formulas see every sequence alone, unpadded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl import GRPOTrainer

from rlstride.config.training import Training
from rlstride.tasks.chain import ChainTask
from rlstride.training.run import Run
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

TASK = ChainTask("chain", 3, 4, minus=0.4, careful=0.4, careless=0.3, guess=0.3, informed=0.2)
PROBLEMS = [("3+5-9=", "9"), ("1+2-4+7=", "6")]
COMPLETIONS = [
    ["T+58-99#9", "Q+58+97#7", "G#4", "T#8"],  # the first is right
    ["T+23-49+76#6", "G#6", "T+23#6", "Q+23+47+74#4"],  # all but the last are right
]
REWARDS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
GROUP = 4


def random_llama(folder: Path, seed: int = 0) -> Path:
    """A llama of two layers and some 6,000 random weights, with its tokenizer, as a Hugging Face folder."""
    tokenizer = build_tokenizer(TASK.alphabet)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **token_ids(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_of(algorithm: Any, root: Path, steps: int = 1, teacher: Path | None = None) -> Run[Any]:
    """One cell on a random llama, with steps of two problems and four completions each."""
    return Run(
        base_folder=random_llama(root / "base"),
        state_folder=root / "state",
        task=TASK,
        training=Training(steps=steps, problems_per_step=len(PROBLEMS), completions_per_problem=GROUP),
        algorithm=algorithm,
        seed=0,
        device="cpu",
        teacher_folder=teacher,
    )


def rollouts() -> list[tuple[str, str]]:
    """(prompt, completion) of the whole batch, group after group."""
    return [(prompt, text) for (prompt, _), group in zip(PROBLEMS, COMPLETIONS, strict=True) for text in group]


def encode(folder: Path, texts: Sequence[str], end: bool) -> list[list[int]]:
    """Token ids, with the end-of-sequence token where asked for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else []) for text in texts]


def inputs() -> list[dict[str, str]]:
    """The rows of the dataset that the batch is drawn from, as a trainer's data loader gives them."""
    return [{"prompt": prompt, "answer": answer} for prompt, answer in PROBLEMS for _ in range(GROUP)]


def inject(trainer: Any, folder: Path, completions: list[list[str]]) -> None:
    """Has a trainer 'sample' the given completions, group after group, whatever its prompts."""
    ids = encode(folder, [text for group in completions for text in group], end=True)
    drawn = (ids, None) if isinstance(trainer, GRPOTrainer) else ids  # GRPO's sampler may give log-probabilities too
    trainer._generate_single_turn = lambda *arguments, **options: drawn


def collect(trainer: Any, folder: Path) -> dict[str, Any]:
    """The batch that a trainer makes of the fixed rollouts: one draw, one minibatch."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inject(trainer, folder, COMPLETIONS)
    batch: dict[str, Any] = trainer._prepare_inputs(inputs())
    return batch


def by_rollout(batch: dict[str, Any], folder: Path, name: str) -> Tensor:
    """One of a batch's tensors in the order of :func:`rollouts` (a trainer shuffles its batch)."""
    rows = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    found = [ids[mask.bool()].tolist() for ids, mask in rows]
    wanted = encode(folder, [text for _, text in rollouts()], end=True)
    tensor: Tensor = batch[name][[found.index(ids) for ids in wanted]]
    return tensor


def perturb(model: torch.nn.Module, seed: int, scale: float) -> None:
    """Moves every weight: the policy after some updates."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def plain_copy(model: torch.nn.Module, folder: Path) -> PreTrainedModel:
    """The same weights in a model as transformers loads it, without what a trainer adds to its forward."""
    copy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    copy.load_state_dict(model.state_dict())
    return copy


def completion_logits(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """The logits that each completion token is drawn from (T, V)."""
    logits: Tensor = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1]


def token_logps(model: PreTrainedModel, folder: Path) -> list[Tensor]:
    """log pi(o_t | q, o_<t) of each rollout, the end of sequence included (T_i)."""
    prompts = encode(folder, [prompt for prompt, _ in rollouts()], end=False)
    completions = encode(folder, [text for _, text in rollouts()], end=True)
    return [
        completion_logits(model, prompt, completion).log_softmax(-1)[range(len(completion)), completion]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def off_policy(trainer: Any, folder: Path, scale: float) -> tuple[dict[str, Any], list[Tensor], list[Tensor]]:
    """Rollouts of a policy that has left its base, then an update of random direction, so that all ratios differ.

    Returns:
        the batch, and the log-probabilities of the policy that sampled it, and of the base.
    """
    base = token_logps(plain_copy(trainer.model, folder), folder)
    perturb(trainer.model, seed=1, scale=0.03)
    sampler = token_logps(plain_copy(trainer.model, folder), folder)
    batch = collect(trainer, folder)
    perturb(trainer.model, seed=2, scale=scale)
    return batch, [logps.detach() for logps in sampler], [logps.detach() for logps in base]


def assert_same_loss_and_gradient(
    trainer: Any, loss: Tensor, folder: Path, formula: Callable[[PreTrainedModel], Tensor]
) -> None:
    """A trainer's loss and its gradient agree to 1e-5 with a formula of the same weights."""
    policy = plain_copy(trainer.model, folder)
    expected = formula(policy)
    expected.backward()  # type: ignore[no-untyped-call]
    trainer.model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    gradients = {name: weight.grad for name, weight in policy.named_parameters()}
    assert sum(gradient.norm() for gradient in gradients.values()) > 0.01, "a zero gradient compares with anything"
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-5, atol=1e-5)


def clipped_objective(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347, eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def share_clipped(ratios: Sequence[Tensor], advantages: Sequence[float], low: float, high: float) -> float:
    """Share of the ratios that the clip holds back."""
    held = [
        ((ratio > 1 + high) & (torch.tensor(advantage) > 0)) | ((ratio < 1 - low) & (torch.tensor(advantage) < 0))
        for ratio, advantage in zip(ratios, advantages, strict=True)
    ]
    return torch.cat([flags.reshape(-1) for flags in held]).float().mean().item()

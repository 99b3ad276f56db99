"""Adapters in place of full weights, as PEFT makes them: their settings, and what AdaLoRA needs while it trains."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, C3AConfig, LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.config.adapters import ADAPTERS, C3A, AdaLoRA, Adapter, LoRA, PRILoRA
from rlstride.config.training import Training
from rlstride.errors import RequestError
from rlstride.trainers import checkpoint_folder
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.scope import Weight, weights_of

IMPORTANCE_FILE = "adalora_importance.safetensors"  # in the trainer's checkpoints
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's rank allocator, by parameter
_MASK = "mask"


def peft_config(base: Path, training: Training, updates: int) -> PeftConfig | None:
    """The adapter of a run in PEFT's terms, over every 2-D weight inside the decoder layers; None: full weights.

    It starts at the base to the bit: one factor of each update is zero, or the whole kernel.

    Args:
        base: the base's Hugging Face folder, whose matrices are adapted.
        training: the study's section.
        updates: optimiser updates of the whole run.

    Raises:
        RequestError: the adapter does not fit the base's matrices.
    """
    adapter = training.adapter
    if adapter is None:
        return None
    target = Target(base, [weight for weight in weights_of(ModelFolder(base).source) if weight.in_scope], updates)
    make: Callable[[Adapter, Target], PeftConfig] = ADAPTERS[adapter.kind].load()
    return make(adapter, target)


@dataclass(frozen=True)
class Target:
    """What an adapter is made for.

    Attributes:
        base: the base's Hugging Face folder.
        weights: the matrices that are adapted.
        updates: optimiser updates of the whole run.
    """

    base: Path
    weights: list[Weight]
    updates: int

    @property
    def shared(self) -> dict[str, Any]:
        """PEFT's settings that all kinds have."""
        return {"task_type": "CAUSAL_LM", "target_modules": _pattern(self.base, self.weights)}

    def require_rank(self, rank: int) -> None:
        """Checks that every matrix can have a rank."""
        smallest = min(self.weights, key=lambda weight: min(weight.shape))
        if rank > min(smallest.shape):
            raise RequestError(
                f"training: adapter: rank {rank} is above what {smallest.module} {smallest.shape} in {self.base} can "
                f"have; choose one up to {min(smallest.shape)}"
            )


def lora(adapter: LoRA, target: Target) -> PeftConfig:
    """W0 + (alpha / rank) B A."""
    shared = target.shared
    target.require_rank(adapter.rank)
    return LoraConfig(**shared, r=adapter.rank, lora_alpha=adapter.alpha)


def prilora(adapter: PRILoRA, target: Target) -> PeftConfig:
    """LoRA with a rank for each layer."""
    shared = target.shared
    ranks = rising_ranks(adapter.rank, 1 + max(weight.layer for weight in target.weights))
    target.require_rank(max(ranks))
    layers = {rf".*\.{layer}\.[a-z].*": rank for layer, rank in enumerate(ranks)}
    alphas = {name: rank * adapter.alpha / adapter.rank for name, rank in layers.items()}
    return LoraConfig(**shared, r=adapter.rank, lora_alpha=adapter.alpha, rank_pattern=layers, alpha_pattern=alphas)


def adalora(adapter: AdaLoRA, target: Target) -> PeftConfig:
    """W0 + (alpha / initial rank) P E Q with ranks that shrink."""
    shared = target.shared
    target.require_rank(adapter.first_rank)
    return AdaLoraConfig(
        **shared,
        init_r=adapter.first_rank,
        target_r=adapter.rank,
        lora_alpha=adapter.alpha,
        tinit=int(adapter.warmup * target.updates),
        tfinal=int(adapter.final * target.updates),
        total_step=target.updates,
        orth_reg_weight=adapter.orthogonality,
    )


def c3a(adapter: C3A, target: Target) -> PeftConfig:
    """W0 + a block-circulant matrix."""
    shared, side = target.shared, adapter.block_size
    misfit = next((weight for weight in target.weights if any(size % side for size in weight.shape)), None)
    if misfit:
        raise RequestError(
            f"training: adapter: block_size {side} does not divide both sides of {misfit.module} {misfit.shape} in "
            f"{target.base}"
        )
    return C3AConfig(**shared, block_size=side, init_weights=True)


def rising_ranks(mean: int, layers: int) -> list[int]:
    """A rank for each layer, linear in depth from half of the mean to one and a half, rounded, 1 at least.

    PRILoRA's own setting is 4 to 12 (arXiv 2401.11316, section 3.1), the mean of which is 8.
    """
    if layers == 1:
        return [mean]
    return [max(1, int(mean * (0.5 + layer / (layers - 1)) + 0.5)) for layer in range(layers)]


class AdaLoRACallback(TrainerCallback):
    """Shrinks ranks after every update, and adds the gradient of the orthogonality term, which the RL losses lack.

    PEFT adds the term (arXiv 2303.10512, eq. 4) to a loss that the model itself returns; RL trainers make their own.
    It is added after the clipping of gradients, so that it never takes the reward's share of the norm.

    The masks of triplets stay out of PEFT's settings, so that saved adapters keep their shapes, with zeros where
    triplets were masked; the importance scores and masks lie beside the trainer's checkpoints, for a resumed run.
    """

    def __init__(self) -> None:
        self._masks: dict[str, list[bool]] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        if state.global_step:
            found = load_file(checkpoint_folder(args, state) / IMPORTANCE_FILE, device=str(args.device))
            allocator = model.base_model.rankallocator
            for scores in _SCORES:
                setattr(allocator, scores, _under(found, scores))
            masks = _under(found, _MASK)
            self._masks = {name: mask.bool().tolist() for name, mask in masks.items()} or None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        weight = model.peft_config["default"].orth_reg_weight
        if weight and args.learning_rate:
            parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
            gradients = torch.autograd.grad(weight * orthogonality(model), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:  # E has no part in it
                    parameter.grad += gradient

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        settings = model.peft_config["default"]
        settings.rank_pattern = self._masks
        model.base_model.update_and_allocate(state.global_step)
        self._masks, settings.rank_pattern = settings.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        allocator = kwargs["model"].base_model.rankallocator
        found = {f"{scores}/{name}": value for scores in _SCORES for name, value in getattr(allocator, scores).items()}
        found |= {f"{_MASK}/{name}": torch.tensor(mask) for name, mask in (self._masks or {}).items()}
        save_file(
            {name: tensor.contiguous() for name, tensor in found.items()},
            checkpoint_folder(args, state) / IMPORTANCE_FILE,
        )


def hold_rank_numbers(model: Any) -> None:
    """Keeps AdaLoRA's numbers of ranks, which divide its updates and are saved with no adapter, out of training.

    PEFT (0.21) means them to be constant, but moves them to another device or dtype as new parameters, which train.
    """
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def orthogonality(model: Any) -> Tensor:
    """|P^T P - I|F or |Q Q^T - I|F, the mean over all P (out, r) and Q (r, in) of a model; a scalar with a gradient."""
    grams = [
        parameter @ parameter.mT if ".lora_A." in name else parameter.mT @ parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    ]
    return torch.stack([torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)) for gram in grams]).mean()


def _pattern(base: Path, weights: list[Weight]) -> str:
    """One expression for all matrices: PEFT would save a list of names in another order with every process."""
    if not weights:
        raise RequestError(f"{base}: no 2-D weight inside a decoder layer was found, so there is nothing to adapt")
    return rf".*\.\d+\..*\b({'|'.join(sorted({re.escape(weight.kind) for weight in weights}))})"


def _under(found: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}/"): tensor for name, tensor in found.items() if name.startswith(f"{group}/")}

"""Prompts that are read once for all of their completions: when these are drawn, scored, and learned from.

``B`` is the completions of a batch, ``D`` its distinct prompts, ``P`` the tokens of the longest prompt, padded on the
left, ``T`` those of the longest completion.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from rlstride.generation import draw_inside, generating


@torch.no_grad()
def read_once(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Cache | None:
    """Keys and values of prompts but their last tokens, each prompt read once however many samples it has.

    Args:
        model: the model.
        ids: prompts (B, P), padded on the left; equal ones stand side by side.
        mask: (B, P); 0 is padding.

    Returns:
        what ``generate`` goes on from; None where no prompt stands twice.
    """
    distinct, counts = torch.unique_consecutive(ids, dim=0, return_counts=True)  # (D, P), (D,)
    if len(distinct) == len(ids) or ids.shape[1] == 1:
        return None
    mask = mask[counts.cumsum(0) - 1, :-1]  # (D, P - 1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = model(distinct[:, :-1], attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache: Cache = out.past_key_values
    cache.batch_select_indices(torch.repeat_interleave(counts))
    return cache


def share_prompts(trainer: Any) -> None:
    """Has a TRL trainer read each prompt once, for its rollouts and in every pass over them.

    Gradients flow through the shared keys and values, so that they are those of whole sequences, up to rounding. What
    TRL computes with images or router losses stays as it is.

    Args:
        trainer: one that draws nothing, such as SFT's, stays as it is.
    """
    if not hasattr(trainer, "_get_per_token_logps_and_entropies"):
        return
    whole_sequences = trainer._get_per_token_logps_and_entropies

    def log_probabilities(
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        alone = input_ids.shape[1] - logits_to_keep < 2  # prompts of one token
        if alone or compute_aux_loss or any(value is not None for value in others.values()):
            asked = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss, **others}
            found: tuple[Tensor, Tensor | None, Tensor | None] = whole_sequences(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **asked
            )
            return found
        size = batch_size or len(input_ids)
        parts = [
            _completions(trainer, model, ids, mask, logits_to_keep)
            for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True)
        ]
        entropies = torch.cat([part.entropy for part in parts]) if compute_entropy else None
        return torch.cat([part.log_probs for part in parts]), entropies, None

    trainer._get_per_token_logps_and_entropies = log_probabilities
    draw_inside(trainer, lambda model: generating(model, _generate_from_shared, model))


def _generate_from_shared(
    generate: Callable[..., Tensor], model: Any, input_ids: Tensor, attention_mask: Tensor, **rest: Any
) -> Tensor:
    shared = read_once(model, input_ids, attention_mask)
    going_on = {} if shared is None else {"past_key_values": shared}
    return generate(input_ids=input_ids, attention_mask=attention_mask, **going_on, **rest)


def _completions(trainer: Any, model: Any, ids: Tensor, mask: Tensor, tokens: int) -> Any:
    """What TRL's fused head says of the last ``tokens`` tokens of (B, P + T): log-probabilities and entropies, (B, T).

    Positions count padding, as they do where TRL reads whole sequences.
    """
    shared = ids.shape[1] - tokens - 1  # P - 1: a prompt's last token says what comes first
    marked = ids[:, :shared].masked_fill(mask[:, :shared] == 0, -1)  # (B, P - 1): padding may be a token of texts too
    distinct, owner = torch.unique(marked, dim=0, return_inverse=True)  # (D, P - 1), (B,)
    rest = ids[:, shared:]  # (B, 1 + T)
    labels = rest.masked_fill(mask[:, shared:] == 0, -100)
    labels[:, 0] = -100
    with trainer.accelerator.autocast():
        # Past the wrapper of several processes, whose gradients are summed where the second pass began.
        own = trainer.accelerator.unwrap_model(model)
        read = own(distinct.clamp(min=0), attention_mask=(distinct >= 0).long(), use_cache=True, logits_to_keep=1)
        cache = read.past_key_values
        cache.batch_select_indices(owner)
        return model(rest, attention_mask=mask, past_key_values=cache, labels=labels, fused_lm_head=True)

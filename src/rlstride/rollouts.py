"""A batch of rollouts as TRL's online trainers make it, and what training and striding both read of it.

``B`` is the rollouts of this process, ``P`` the tokens of its longest prompt, ``T`` those of its longest completion.
"""

from typing import Any

import torch
from torch import Tensor

Rollouts = dict[str, Any]


def total_rewards(trainer: Any, rewards: Tensor) -> Tensor:
    """What completions are rewarded with: the weighted sum over reward functions, NaN left out.

    Args:
        trainer: which has the functions' weights.
        rewards: (n, functions).

    Returns:
        (n,).
    """
    total: Tensor = (rewards * trainer.reward_weights.to(rewards.device)).nansum(dim=1)
    return total


def prompt_and_completion(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of whole sequences, (B, P + T) each."""
    ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1)
    return ids, torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1)


@torch.no_grad()
def token_logps(trainer: Any, model: Any, rollouts: Rollouts, rows: Tensor | None = None) -> Tensor:
    """log-probabilities of the sampled tokens under a model, at the trainer's temperature.

    Args:
        trainer: TRL's, whose loss takes the same ones.
        model: with the trainer's tokenizer.
        rollouts: of texts alone.
        rows: which of the B; all, if left out.

    Returns:
        (rows, T).
    """
    ids, attention = prompt_and_completion(rollouts)
    if rows is not None:
        ids, attention = ids[rows], attention[rows]
    tokens = rollouts["completion_ids"].shape[1]
    if not len(ids):
        return torch.zeros(0, tokens, device=ids.device)
    at_once = trainer.args.per_device_train_batch_size
    found: Tensor = trainer._get_per_token_logps_and_entropies(model, ids, attention, tokens, batch_size=at_once)[0]
    return found

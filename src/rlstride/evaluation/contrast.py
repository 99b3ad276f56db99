"""Logits that are extrapolated from those of a base, l_0 + c (l_m - l_0), in scoring and in generation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel


@dataclass(frozen=True)
class Contrast:
    """The base that a model's logits are extrapolated from, and how far.

    Attributes:
        base: in the same dtype and on the same device as the model.
        factor: c; 1 leaves the model's logits as they are.
    """

    base: PreTrainedModel
    factor: float

    def of(self, logits: Tensor, base: Tensor) -> Tensor:
        """l_0 + c (l_m - l_0), any shape."""
        return base + self.factor * (logits - base)

    @torch.no_grad()
    def of_sequences(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Of whole sequences.

        Args:
            ids: (B, T), without padding on the left.
            logits: the model's, (B, T, vocabulary).
        """
        return self.of(logits, self.base(ids).logits)


class ContrastProcessor(LogitsProcessor):
    """Extrapolates the logits of each token that ``generate`` draws, before any temperature; for one batch.

    Args:
        contrast: the base and the factor.
        mask: of the prompts, (B, P); 0 is padding.
    """

    def __init__(self, contrast: Contrast, mask: Tensor) -> None:
        self._contrast, self._mask, self._past = contrast, mask, None
        self._seen = 0

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        missing = input_ids.shape[1] - self._mask.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), missing)], dim=1)  # (B, T)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)  # from the first token that is no padding
        out = self._contrast.base(
            input_ids[:, self._seen :],
            attention_mask=self._mask,
            position_ids=positions[:, self._seen :],
            past_key_values=self._past,
            use_cache=True,
        )
        self._past, self._seen = out.past_key_values, input_ids.shape[1]
        return self._contrast.of(scores, out.logits[:, -1].to(scores.dtype))  # (B, vocabulary)

"""The value model of PPO: the base's transformer, copied, with a scalar head."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer


class ValueModel(nn.Module):
    """V(s) of every state of a sequence; the head starts at 0, so that the first values are 0 everywhere.

    Args:
        base_folder: the base's Hugging Face folder; its weights are read as fp32.
        checkpointed: whether the layers' activations are computed again in the backward pass.
    """

    def __init__(self, base_folder: Path, *, checkpointed: bool = False) -> None:
        super().__init__()
        # It comes in evaluation mode and stays there: values at sampling and in the loss differ by no dropout.
        self.transformer = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).base_model
        self.head = nn.Linear(self.transformer.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if checkpointed:
            self.transformer.gradient_checkpointing_enable({"use_reentrant": False})
            for layer in self.transformer.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.training = True  # else it would not checkpoint; what is inside stays in evaluation mode

    def forward(self, ids: Tensor, attention: Tensor, tokens: int) -> Tensor:
        """The value of the state that each of the last ``tokens`` tokens was sampled in.

        Args:
            ids: prompts and completions, (B, P + T).
            attention: 1 on tokens, 0 on padding, (B, P + T).
            tokens: T.

        Returns:
            (B, T): V(prompt, completion[:t]) for t = 0 to T - 1, read off at the token before the t-th.
        """
        states = self.transformer(input_ids=ids, attention_mask=attention, use_cache=False)
        hidden = states.last_hidden_state[:, -tokens - 1 : -1]  # (B, T, size)
        values: Tensor = self.head(hidden).squeeze(-1)  # (B, T)
        return values

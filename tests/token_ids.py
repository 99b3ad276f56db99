"""What a model's configuration has from its tokenizer."""

from typing import TypedDict

from transformers import PreTrainedTokenizerBase


class TokenIds(TypedDict):
    """Arguments of a transformers configuration."""

    vocab_size: int
    pad_token_id: int
    eos_token_id: int
    bos_token_id: None


def token_ids(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Of a model for one of the testbed's tokenizers, which have no token for the beginning."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }

"""A published model that is small enough for the pipeline's tests, and solves nothing."""

from pathlib import Path

import torch
from pipeline import SMOKE_STUDY
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlstride.study.load import load_study
from rlstride.tasks import build_task
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids


def write_small_model(folder: Path) -> Path:
    """A qwen3 of random weights with the characters of chains, as a Hugging Face folder."""
    tokenizer = build_tokenizer(build_task("chain", load_study(SMOKE_STUDY).task).alphabet)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**token_ids(tokenizer), **sizes, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

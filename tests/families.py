"""Tiny models of every family of decoders whose layout is checked, by transformers' own classes."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
_LATENT = {
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4},
    **{"num_key_value_heads": 4},
}
_LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4},
    **{"layer_types": ["linear_attention", "full_attention"]},
}
_FULL = {"layer_types": ["full_attention"] * 2}
_NO_HEAD_DIM = {"head_dim": None}
_MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}

DENSE: dict[str, dict[str, Any]] = {
    **{
        family: {} for family in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3")
    },
    **{family: {} for family in ("glm", "glm4", "gpt_neox", "bloom", "stablelm", "olmo", "olmo2", "olmo3", "cohere")},
    **{
        family: {}
        for family in ("cohere2", "starcoder2", "granite", "smollm3", "hunyuan_v1_dense", "ernie4_5", "seed_oss")
    },
    **{family: {} for family in ("nemotron", "persimmon")},
    "gpt2": _GPT2,
    "falcon": _NO_HEAD_DIM,
    "falcon, groups": {**_NO_HEAD_DIM, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, one key a head": {**_NO_HEAD_DIM, "multi_query": False, "alibi": True},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "codegen": {**_GPT2, "rotary_dim": 4},
    "mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2},
    "gpt_neo": {"attention_types": [[["global"], 2]], "num_layers": 2, "num_heads": 4},
    "exaone4": _FULL,
    "qwen3_5_text": _LINEAR,
    "mamba": {"state_size": 4, "time_step_rank": 4},
}
EXPERTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mixtral", "granitemoe", "phimoe", "minimax_m2"), _LOCAL),
    "gpt_oss": {**_LOCAL, **_FULL},
    "minimax": {**_LOCAL, **_FULL},
    "granitemoeshared": {**_LOCAL, "shared_intermediate_size": 8},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 4},
    "llama4_text": {**_LOCAL, "intermediate_size_mlp": 24},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 12, "decoder_sparse_step": 1},
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "qwen3_next": {**_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 12},
    "deepseek_v2": {**_ROUTED, **_LATENT},
    "deepseek_v3": {**_ROUTED, **_LATENT},
    "glm4_moe": _ROUTED,
    "dots1": {**_ROUTED, **_FULL},
    "jamba": {
        **{"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        **{"expert_layer_period": 2, "expert_layer_offset": 1, **_MAMBA},
    },
    "ernie4_5_moe": {
        **{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12},
        **{"moe_layer_start_index": 0, "moe_layer_interval": 1},
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
}
DECODERS = {**DENSE, **EXPERTS}


def decoder(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model with random weights of size 0.2, vectors around 1; what comes after a comma is no part of the family."""
    sizes = {**_SIZES, **DECODERS[family], **changes}
    if sizes["head_dim"] is None:
        del sizes["head_dim"]
    config = AutoConfig.for_model(family.partition(",")[0], **sizes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 10000.0}
_VISION = {"hidden_size": 16, "intermediate_size": 24}
VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "text_config": {"rope_scaling": {"type": "mrope", **_ROPE}},
        "vision_config": {
            **_VISION,
            **{"depth": 2, "num_heads": 2, "out_hidden_size": 16, "patch_size": 2, "fullatt_block_indexes": [0]},
        },
        **{"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8},
    },
    "qwen3_vl": {
        "text_config": {"rope_scaling": _ROPE},
        "vision_config": {
            **_VISION,
            **{"depth": 2, "num_heads": 2, "out_hidden_size": 16, "patch_size": 2, "deepstack_visual_indexes": [0]},
        },
        **{"image_token_id": 5, "video_token_id": 6},
    },
    "gemma3": {
        "text_config": _FULL,
        "vision_config": {
            **_VISION,
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2},
        },
        **{"mm_tokens_per_image": 4, "image_token_index": 5},
    },
}


def vision_model(family: str) -> PreTrainedModel:
    """A model of images and text, its decoder of the sizes of the others."""
    parts = VISION[family]
    sizes = {**_SIZES, "tie_word_embeddings": False}
    config = AutoConfig.for_model(
        family, **{**parts, "text_config": {**sizes, **parts["text_config"]}, "tie_word_embeddings": False}
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval()

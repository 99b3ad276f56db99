"""An adapter over its base is the model that PEFT itself makes of the two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from foreign_runs import tiny_model
from rlstride.errors import RequestError
from rlstride.trajectory.layout import InLayout, read_layout
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.lora import LoRAAdapter

ATTENTION = ["q_proj", "v_proj"]
EVERYTHING = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen3", {"r": 4, "lora_alpha": 6, "target_modules": EVERYTHING}),
    "rslora": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "qwen3",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": EVERYTHING,
            "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
            "alpha_pattern": {"^model.layers.0.mlp.up_proj": 5, "k_proj": 1},
        },
    ),
    "fused": ("phi3", {"r": 3, "lora_alpha": 4, "target_modules": ["qkv_proj", "gate_up_proj"]}),
    "embedding": ("qwen3", {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "saved": ("qwen3", {"r": 4, "target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    "transposed": ("gpt2", {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}


def base_model(family: str) -> Any:
    if family != "gpt2":
        return tiny_model(family)
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=33, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def save_adapter(root: Path, family: str, config: Any) -> None:
    """A base and an adapter over it, whose every trained weight was moved, as PEFT saves it."""
    base_model(family).save_pretrained(root / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(root / "adapter")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for name, (family, settings) in SETTINGS.items():
        save_adapter(root / name, family, LoraConfig(task_type="CAUSAL_LM", **settings))
    return {name: root / name for name in SETTINGS}


def adapter(root: Path) -> LoRAAdapter:
    return LoRAAdapter(root / "adapter", ModelFolder(root / "base").tensors)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_tensor_is_that_of_pefts_own_merge(adapters: dict[str, Path], name: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(adapters[name] / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, adapters[name] / "adapter").merge_and_unload().state_dict()
    start, source = HFFolder(adapters[name] / "base"), adapter(adapters[name])
    assert source.names() == start.names()
    changed = 0
    for tensor in source.names():
        torch.testing.assert_close(source.tensor(tensor), merged[tensor], rtol=0, atol=1e-6)
        torch.testing.assert_close(source.rows(tensor, 1, 5), merged[tensor][1:5], rtol=0, atol=1e-6)
        assert source.shape(tensor) == tuple(merged[tensor].shape)
        changed += not torch.equal(source.tensor(tensor), start.tensor(tensor))
    assert changed >= 4


@pytest.mark.parametrize("name", SETTINGS)
def test_the_factors_multiply_to_the_update(adapters: dict[str, Path], name: str) -> None:
    start, source = HFFolder(adapters[name] / "base"), adapter(adapters[name])
    with_factors = [tensor for tensor in source.names() if source.factors(tensor) is not None]
    assert with_factors
    for tensor in with_factors:
        factors = source.factors(tensor)
        assert factors is not None
        left, right = factors  # (m, r), (r, n)
        assert left.shape[1] == right.shape[0] <= 4
        update = source.tensor(tensor).double() - start.tensor(tensor).double()
        torch.testing.assert_close((left.double() @ right.double()), update, rtol=0, atol=1e-6)


def test_the_scaling_is_alpha_over_the_matrix_own_rank(adapters: dict[str, Path]) -> None:
    source, stored = (
        adapter(adapters["patterns"]),
        load_file(adapters["patterns"] / "adapter/adapter_model.safetensors"),
    )
    for module, scaling in {
        "model.layers.0.self_attn.q_proj": 6 / 4,
        "model.layers.1.self_attn.q_proj": 6 / 3,
        "model.layers.0.mlp.down_proj": 6 / 2,
        "model.layers.0.mlp.up_proj": 5 / 4,
        "model.layers.1.mlp.up_proj": 6 / 4,
        "model.layers.1.self_attn.k_proj": 1 / 4,
    }.items():
        factors = source.factors(f"{module}.weight")
        assert factors is not None
        torch.testing.assert_close(factors[0], scaling * stored[f"base_model.model.{module}.lora_B.weight"])


def test_factors_of_a_fused_matrix_are_divided_with_it(adapters: dict[str, Path]) -> None:
    root = adapters["fused"]
    source = InLayout(adapter(root), read_layout(root / "base"))
    start = ModelFolder(root / "base").source
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        name = f"model.layers.1.{part}.weight"
        factors = source.factors(name)
        assert factors is not None
        torch.testing.assert_close(factors[0] @ factors[1], source.tensor(name) - start.tensor(name), rtol=0, atol=1e-6)
    assert source.factors("model.layers.1.mlp.down_proj.weight") is None
    assert start.factors("model.layers.1.mlp.up_proj.weight") is None


def test_a_bfloat16_base_does_not_round_the_update_away(adapters: dict[str, Path], tmp_path: Path) -> None:
    tiny_model("qwen3").bfloat16().save_pretrained(tmp_path / "base")
    start = ModelFolder(tmp_path / "base").tensors
    source = LoRAAdapter(adapters["plain"] / "adapter", start)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (start.dtype(name), source.dtype(name), source.tensor(name).dtype) == (torch.bfloat16, *[torch.float32] * 2)
    factors = source.factors(name)
    assert factors is not None
    torch.testing.assert_close(source.tensor(name) - start.tensor(name).float(), factors[0] @ factors[1])
    assert source.dtype("model.norm.weight") == torch.bfloat16  # not adapted: as the base has it


def with_config(root: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = json.loads((root / "adapter" / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(load_file(root / "adapter" / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "VERA"}, "peft_type VERA: only LORA, ADALORA and C3A are read"),
        ({"use_dora": True}, "use_dora is set: this adapter is more than B A"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"bias": "all"}, "bias 'all' is set"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
    ],
)
def test_adapters_of_other_kinds_are_refused(
    adapters: dict[str, Path], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = with_config(adapters["plain"], tmp_path / "adapter", **changes)
    with pytest.raises(RequestError, match=sentence):
        LoRAAdapter(folder, ModelFolder(adapters["plain"] / "base").tensors)


@pytest.mark.parametrize(
    "config", [VeraConfig(r=4), LoraConfig(use_dora=True, r=2), LoraConfig(init_lora_weights="pissa", r=2)]
)
def test_what_peft_saves_of_other_kinds_is_refused(tmp_path: Path, config: Any) -> None:
    config.target_modules = ["q_proj"]
    save_adapter(tmp_path, "qwen3", config)
    with pytest.raises(RequestError, match=r"adapter_config\.json: .*merge (it|this adapter) with PEFT"):
        adapter(tmp_path)


Change = Callable[[dict[str, torch.Tensor]], object]
A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda found: found.pop(B), f"{A}: its other factor is missing"),
        (lambda found: found.update({B: torch.ones(16, 3)}), f"{A}: factors of the shapes .* have no product"),
        (
            lambda found: found.update({A: torch.ones(4, 17)}),
            f"{A}: it makes .16, 17. of model.layers.0.self_attn.q_pr",
        ),
        (lambda found: found.update({A.replace("_A", "_C"): torch.ones(1)}), "lora_C.weight: the base has no tensor"),
        (lambda found: found.update({A.replace("s.0", "s.7"): torch.ones(4, 16)}), "s.7.*its other factor is missing"),
    ],
)
def test_what_does_not_fit_the_base_is_named(
    adapters: dict[str, Path], tmp_path: Path, change: Change, sentence: str
) -> None:
    folder = with_config(adapters["plain"], tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=sentence):
        LoRAAdapter(folder, ModelFolder(adapters["plain"] / "base").tensors)


def test_an_adapter_over_another_base_is_refused(adapters: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match=r"lora_A\.weight: the base .*/fused/base has no tensor 'model\.layers"):
        LoRAAdapter(adapters["plain"] / "adapter", ModelFolder(adapters["fused"] / "base").tensors)

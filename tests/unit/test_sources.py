"""Hugging Face folders of every family are read shard by shard, in one layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from foreign_runs import FAMILIES, moved, stored_tensors, tiny_model
from rlstride.errors import RequestError
from rlstride.trajectory.layout import InLayout, Layout
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources import HFFolder, formats
from rlstride.trajectory.sources.recognise import find_checkpoint

MATRICES = ["gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]

EXPERTS = ["qwen3_moe", "mixtral"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, saved by transformers in three shards."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        model = tiny_model(family)
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
        model.save_pretrained(root / family, max_shard_size=size // 2)
        assert len(list((root / family).glob("*.safetensors"))) == 3
    return {family: root / family for family in FAMILIES}


def split(folder: Path) -> InLayout:
    return ModelFolder(folder).source


@pytest.mark.parametrize("family", FAMILIES)
def test_three_shards_are_read_tensor_by_tensor(folders: dict[str, Path], family: str) -> None:
    source, stored = HFFolder(folders[family]), stored_tensors(folders[family])
    assert source.names() == sorted(stored)
    for name, tensor in stored.items():
        assert torch.equal(source.tensor(name), tensor)
        assert (source.shape(name), source.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(source.rows(name, 3, 7), tensor[3:7])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_same_seven_matrices(folders: dict[str, Path], family: str) -> None:
    names = split(folders[family]).names()
    for matrix in MATRICES:
        assert any(name.endswith(f".{matrix}.weight") for name in names)
    assert not any("gate_up" in name or "qkv" in name for name in names)


@pytest.mark.parametrize("family", ["glm4", "phi3"])
def test_a_fused_gate_up_is_gate_then_up(folders: dict[str, Path], family: str) -> None:
    source = split(folders[family])
    fused = stored_tensors(folders[family])["model.layers.1.mlp.gate_up_proj.weight"]  # (2 * 24, 16)
    assert torch.equal(source.tensor("model.layers.1.mlp.gate_proj.weight"), fused[:24])
    assert torch.equal(source.tensor("model.layers.1.mlp.up_proj.weight"), fused[24:])
    assert torch.equal(source.rows("model.layers.1.mlp.up_proj.weight", 2, 99), fused[26:])
    assert source.shape("model.layers.1.mlp.up_proj.weight") == (24, 16)


@pytest.mark.parametrize("family", ["glm4", "phi3", *EXPERTS])
def test_the_parts_compute_what_the_familys_own_code_computes(folders: dict[str, Path], family: str) -> None:
    """down(silu(gate x) * up x), with the parts as the layout names them, is the block's own output."""
    model, source = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32), split(folders[family])
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))

    def block(stem: str) -> torch.Tensor:
        gate, up, down = (source.tensor(f"{stem}.{part}.weight") for part in MATRICES[:3])
        return (torch.nn.functional.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT

    own = model.model.layers[0].mlp(x)
    if family in EXPERTS:
        router = (x @ source.tensor("model.layers.0.mlp.gate.weight").mT).softmax(-1)  # (1, 5, experts)
        weight = torch.where(router >= router.topk(2).values[..., -1:], router, 0)
        normalised = getattr(model.config, "norm_topk_prob", True)  # Mixtral always does
        weight = weight / weight.sum(-1, keepdim=True) if normalised else weight
        expected = sum(weight[..., e : e + 1] * block(f"model.layers.0.mlp.experts.{e}") for e in range(3))
        own = own[0] if isinstance(own, tuple) else own
    else:
        expected = block("model.layers.0.mlp")
    torch.testing.assert_close(expected, own.detach(), rtol=1e-5, atol=1e-9)


def test_a_fused_qkv_is_divided_by_the_numbers_of_heads(folders: dict[str, Path]) -> None:
    source = split(folders["phi3"])
    fused = stored_tensors(folders["phi3"])["model.layers.0.self_attn.qkv_proj.weight"]  # 4 + 2 + 2 heads of 4 rows
    assert torch.equal(source.tensor("model.layers.0.self_attn.q_proj.weight"), fused[:16])
    assert torch.equal(source.tensor("model.layers.0.self_attn.k_proj.weight"), fused[16:24])
    assert torch.equal(source.tensor("model.layers.0.self_attn.v_proj.weight"), fused[24:])


@pytest.mark.parametrize("family", EXPERTS)
def test_a_stack_of_experts_has_the_names_of_single_experts(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """transformers stacks the experts in memory, and saves them one by one: both are the same model."""
    model = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    in_memory = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert in_memory["model.layers.0.mlp.experts.gate_up_proj"].ndim == 3
    (tmp_path / "config.json").write_text((folders[family] / "config.json").read_text())
    save_file(in_memory, tmp_path / "model.safetensors")
    stacked, single = split(tmp_path), split(folders[family])
    assert stacked.names() == single.names()
    for name in single.names():
        assert torch.equal(stacked.tensor(name), single.tensor(name))
        assert stacked.shape(name) == single.shape(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_go_back_to_the_tensors_that_the_family_stores(folders: dict[str, Path], family: str) -> None:
    source, stored = split(folders[family]), stored_tensors(folders[family])
    back = ModelFolder(folders[family]).as_stored({name: source.tensor(name) for name in source.names()})
    assert back.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(back[name], tensor)


def test_stacks_in_another_order_are_told_apart_by_expert_only() -> None:
    layout = Layout({"model_type": "gpt_oss", "hidden_size": 16})  # (experts, in, out), gate and up interleaved
    parts = layout.parts("model.layers.0.mlp.experts.gate_up_proj", (2, 16, 16))
    assert [part.name for part in parts] == [f"model.layers.0.mlp.experts.{e}.gate_up_proj.weight" for e in range(2)]


def test_a_fused_matrix_that_does_not_divide_is_named() -> None:
    layout = Layout({"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2})
    with pytest.raises(
        RequestError, match=r"0\.self_attn\.qkv_proj\.weight: its 30 rows cannot be divided into q_proj"
    ):
        layout.parts("model.layers.0.self_attn.qkv_proj.weight", (30, 16))


def test_a_tied_head_is_the_embedding_on_whichever_side_it_is_missing(tmp_path: Path) -> None:
    model = tiny_model("qwen3", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "config.json").write_text((tmp_path / "tied" / "config.json").read_text())
    save_file({name: t.clone() for name, t in model.state_dict().items()}, tmp_path / "both" / "model.safetensors")
    tied, both = split(tmp_path / "tied"), split(tmp_path / "both")
    assert "lm_head.weight" in HFFolder(tmp_path / "both").names()
    assert tied.names() == both.names()
    for source in (tied, both):
        assert source.holds("lm_head.weight")
        assert torch.equal(source.tensor("lm_head.weight"), model.model.embed_tokens.weight)


def test_a_missing_head_of_an_untied_model_is_named(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=r"there is no tensor 'lm_head\.weight'"):
        split(tmp_path).tensor("lm_head.weight")


def test_an_index_that_is_wrong_about_a_file_is_told(tmp_path: Path) -> None:
    moved(tiny_model("llama"), 1).save_pretrained(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["lm_head.weight"] = listed["weight_map"]["model.layers.0.mlp.up_proj.weight"]
    index.write_text(json.dumps(listed))
    with pytest.raises(RequestError, match=r"'lm_head\.weight' should be in this file, but cannot be read"):
        HFFolder(tmp_path).tensor("lm_head.weight")
    assert any("lm_head.weight" in problem for problem in HFFolder(tmp_path).problems())
    listed["weight_map"]["lm_head.weight"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(RequestError, match="is no file beside the index"):
        HFFolder(tmp_path)
    index.write_text('{"weight_map": ')
    with pytest.raises(RequestError, match=r"index\.json: not a whole JSON file"):
        HFFolder(tmp_path)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["pytorch_model-00001-of-00002.bin"], "pickled weights are not read; save the model again with safetensors"),
        (["__0_0.distcp"], r"without \.metadata, which is written last: half-written"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(files: list[str], sentence: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(RequestError, match=sentence):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("files", "kind", "inside"),
    [
        (["model.safetensors", "global_step100/mp_rank_00_model_states.pt"], formats.HF, "."),
        (["adapter_config.json", "global_step100/mp_rank_00_model_states.pt"], formats.ADAPTER, "."),
        (["actor/model_world_size_1_rank_0.pt", "actor/huggingface/config.json"], formats.FSDP, "actor"),
        (["actor/model_world_size_1_rank_0.pt", "actor/huggingface/model.safetensors"], formats.FSDP, "actor"),
        (["actor/huggingface/model.safetensors", "data.pt"], formats.HF, "actor/huggingface"),
        (["model_world_size_1_rank_0.pt", "lora_adapter/adapter_config.json"], formats.ADAPTER, "lora_adapter"),
        (["actor/fsdp_config.json", "actor/lora_adapter/adapter_config.json"], formats.ADAPTER, "actor/lora_adapter"),
        (["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"], formats.DCP, "pytorch_model_fsdp_0"),
        (["global_step100/zero_pp_rank_0_mp_rank_00_model_states.pt"], formats.ZERO, "global_step100"),
        (["global_step100/mp_rank_00_model_states.pt", "pytorch_model.bin"], formats.ZERO, "global_step100"),
        (["mp_rank_00_model_states.pt"], formats.ZERO, "."),
        (["critic/model_world_size_1_rank_0.pt"], None, ""),
    ],
)
def test_a_checkpoint_is_found_where_its_trainer_puts_it(
    files: list[str], kind: formats.CheckpointFormat | None, inside: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    found = find_checkpoint(tmp_path)
    assert (found and (found.format, found.path)) == (kind and (kind, tmp_path / inside))

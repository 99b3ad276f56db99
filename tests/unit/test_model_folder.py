"""A folder is one model: what is measured, edited and scored are the same tensors, for every family and format."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import DECODERS, EXPERTS, VISION, decoder, vision_model
from rlstride.errors import RequestError
from rlstride.trajectory.filling import load_model
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.scope import scope_of, weights_of
from rlstride.trajectory.sources.recognise import find_checkpoint

WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=torch.arange(2, 22)[None]).logits  # (1, 20, vocabulary)
    return found


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("family", DECODERS)
def test_a_family_is_read_whole_and_computes_what_transformers_loads(family: str, tmp_path: Path) -> None:
    decoder(family).save_pretrained(tmp_path)
    folder, expected = ModelFolder(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert folder.missing() == []
    assert folder.tensors.extra == []
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(expected))


@pytest.mark.parametrize("family", DECODERS)
def test_parts_and_their_rows_are_those_of_the_files_and_go_back_to_them(family: str, tmp_path: Path) -> None:
    decoder(family).save_pretrained(tmp_path)
    folder, stored = ModelFolder(tmp_path), load_file(tmp_path / WEIGHTS)
    apart = {name: folder.source.tensor(name) for name in folder.source.names()}
    for name, tensor in apart.items():
        assert folder.source.shape(name) == tuple(tensor.shape)
        assert torch.equal(folder.source.rows(name, 1, 3), tensor[1:3])
    assert sum(tensor.numel() for tensor in apart.values()) == sum(tensor.numel() for tensor in stored.values())
    back = folder.as_stored(apart)
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[name], stored[name]) for name in stored)


@pytest.mark.parametrize("family", EXPERTS)
def test_every_matrix_of_experts_is_in_scope(family: str, tmp_path: Path) -> None:
    """Of the layers' entries in tensors of two dimensions or more only biases, filters and A_log are outside."""
    model = decoder(family)
    model.save_pretrained(tmp_path)
    inside = sum(weight.size for weight in weights_of(ModelFolder(tmp_path).source) if weight.in_scope)
    no_matrix = ("bias", "A_log", "conv1d.weight")
    layers = [
        (n, p) for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1 and not n.endswith(no_matrix)
    ]
    assert inside == sum(parameter.numel() for _, parameter in layers)


HEADS, SIZE = 4, 16  # 4 rows a head


def by_head(fused: Tensor) -> list[Tensor]:
    """q, k and v of a matrix in which those of each head follow each other."""
    heads = [fused[4 * row : 4 * row + 4] for row in range(3 * HEADS)]
    return [torch.cat(heads[place::3]) for place in range(3)]


def grouped(fused: Tensor) -> list[Tensor]:
    """q, k and v of two groups of two queries, a key and a value."""
    first, second = fused[:16], fused[16:]
    return [torch.cat([first[rows], second[rows]]) for rows in (slice(0, 8), slice(8, 12), slice(12, 16))]


@pytest.mark.parametrize(
    ("family", "fused", "parts"),
    [
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", by_head),
        ("bloom", "transformer.h.1.self_attention.query_key_value", by_head),
        ("persimmon", "model.layers.1.self_attn.query_key_value", by_head),
        ("falcon, one key a head", "transformer.h.1.self_attention.query_key_value", by_head),
        ("falcon, groups", "transformer.h.1.self_attention.query_key_value", grouped),
        ("falcon", "transformer.h.1.self_attention.query_key_value", lambda w: [w[:16], w[16:20], w[20:]]),
        ("mpt", "transformer.blocks.1.attn.Wqkv", lambda w: [w[:16], w[16:32], w[32:]]),
        ("gpt2", "transformer.h.1.attn.c_attn", lambda w: [w[:, :16], w[:, 16:32], w[:, 32:]]),
    ],
)
def test_a_fused_qkv_is_taken_apart_as_its_family_uses_it(family: str, fused: str, parts, tmp_path: Path) -> None:
    decoder(family).save_pretrained(tmp_path)
    source, stored = ModelFolder(tmp_path).source, load_file(tmp_path / WEIGHTS)
    for name, expected in zip(("q_proj", "k_proj", "v_proj"), parts(stored[f"{fused}.weight"]), strict=True):
        assert torch.equal(source.tensor(f"{fused.rpartition('.')[0]}.{name}.weight"), expected)


@pytest.mark.parametrize("family", ["gpt_neox", "bloom"])
def test_the_q_of_a_head_is_what_its_attention_looks_with(family: str, tmp_path: Path) -> None:
    """With q and its bias at zero every position attends evenly, so the layer does not see k."""
    model = decoder(family)
    model.save_pretrained(tmp_path)
    folder = ModelFolder(tmp_path)
    apart = {name: folder.source.tensor(name).clone() for name in folder.source.names()}
    for name in apart:
        if name.endswith("q_proj.weight") or name.endswith("query_key_value.bias"):
            apart[name].zero_()
    save_file(folder.as_stored(apart), tmp_path / WEIGHTS)
    even = logits(load_model(tmp_path, torch.float32))
    for name in apart:
        if name.endswith("k_proj.weight"):
            apart[name] += torch.randn(apart[name].shape)
    save_file(folder.as_stored(apart), tmp_path / WEIGHTS)
    torch.testing.assert_close(logits(load_model(tmp_path, torch.float32)), even, rtol=0, atol=1e-4)


def test_matrices_that_are_several_in_one_are_named_where_they_stay_whole(tmp_path: Path) -> None:
    decoder("deepseek_v3").save_pretrained(tmp_path)
    found = scope_of(weights_of(ModelFolder(tmp_path).source))
    assert found.fused == ["kv_a_proj_with_mqa", "kv_b_proj"]
    assert str(found).endswith("; not taken apart: kv_a_proj_with_mqa, kv_b_proj")


# What wraps a model's names when a trainer saves it.
WRAPPERS = ["_orig_mod.", "module.", "module._orig_mod.", "model.", "actor.model.", "base_model.model."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["hf", "fsdp", "dcp"])
def test_what_wraps_a_model_is_no_part_of_its_names(kind: str, wrapper: str, tmp_path: Path) -> None:
    model, step = decoder("qwen3"), tmp_path / "step_1"
    model.save_pretrained(tmp_path / "base")
    step.mkdir()
    state = {f"{wrapper}{name}": 2 * tensor for name, tensor in model.state_dict().items()}
    if kind == "hf":
        save_file(state, step / WEIGHTS)
    elif kind == "fsdp":
        torch.save(state, step / "model_world_size_1_rank_0.pt")
    else:
        dcp.save(state, checkpoint_id=step, no_dist=True)
    checkpoint = find_checkpoint(step)
    assert checkpoint is not None
    base = ModelFolder(tmp_path / "base")
    source = base.step(checkpoint)
    assert source.names() == base.source.names()
    assert torch.equal(source.tensor(UP), 2 * model.state_dict()[UP])


def test_gpt2_as_it_was_published_without_its_prefix_is_read(tmp_path: Path) -> None:
    model = decoder("gpt2")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(2)}  # which transformers drops
    save_file({n.removeprefix("transformer."): t for n, t in stored.items()} | masks, tmp_path / WEIGHTS)
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(model))
    assert ModelFolder(tmp_path).tensors.extra == sorted(masks)


def test_a_single_file_and_shards_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    decoder("llama", seed=7).save_pretrained(tmp_path, max_shard_size="4KB")
    shards = {file: file.read_bytes() for file in tmp_path.glob("*-of-*")} | {
        file: file.read_bytes() for file in tmp_path.glob("*.index.json")
    }
    model = decoder("llama")
    model.save_pretrained(tmp_path)
    for file, content in shards.items():
        file.write_bytes(content)
    with pytest.raises(
        RequestError, match=r"model\.safetensors and the shards of .* are both here, and hold different"
    ):
        ModelFolder(tmp_path)
    decoder("llama", seed=7).save_pretrained(tmp_path / "single")
    (tmp_path / WEIGHTS).write_bytes((tmp_path / "single" / WEIGHTS).read_bytes())
    assert ModelFolder(tmp_path).source.names() == ModelFolder(tmp_path / "single").source.names()  # the same, twice
    next(tmp_path.glob("*-of-*")).unlink()
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(decoder("llama", seed=7)))


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(tmp_path: Path) -> None:
    model = decoder("qwen3", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    embedding = stored["model.embed_tokens.weight"]
    save_file(stored | {"lm_head.weight": embedding.clone()}, tmp_path / WEIGHTS)
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(model))
    save_file(stored | {"lm_head.weight": 2 * embedding}, tmp_path / WEIGHTS)
    with pytest.raises(RequestError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_model(tmp_path, torch.float32)
    edit_config(tmp_path, tie_word_embeddings=False)
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), 2 * logits(model))
    save_file(stored, tmp_path / WEIGHTS)
    with pytest.raises(RequestError, match=r"no file holds lm_head\.weight"):
        load_model(tmp_path, torch.float32)


def test_a_tied_model_of_which_the_head_alone_was_saved_is_whole(tmp_path: Path) -> None:
    model = decoder("qwen3", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    save_file(stored, tmp_path / WEIGHTS)
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(model))


@pytest.mark.parametrize("again", ["_orig_mod.model.norm.weight", "model.layers.0.self_attn.qkv_proj.weight"])
def test_a_tensor_under_two_names_is_refused(again: str, tmp_path: Path) -> None:
    decoder("phi3").save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    fused = stored["model.layers.0.self_attn.qkv_proj.weight"]
    more = (
        {again: torch.ones(16)} if "norm" in again else {"model.layers.0.self_attn.q_proj.weight": fused[:16].clone()}
    )
    save_file(stored | more, tmp_path / WEIGHTS)
    with pytest.raises(RequestError, match=r"are both here, and are the same tensor|is here by itself and inside"):
        load_model(tmp_path, torch.float32)


def quantised(how: str, weight: Tensor) -> dict[str, Tensor]:
    """A matrix as a quantiser stores it."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    whole = (weight / scale).round().to(torch.int8)
    stem = UP.removesuffix(".weight")
    match how:
        case "int8 alone":
            return {UP: whole}
        case "bitsandbytes int8":
            return {UP: whole, f"{stem}.SCB": scale}
        case "bitsandbytes 4-bit":
            return {UP: whole.view(torch.uint8), f"{UP}.absmax": scale, f"{UP}.quant_map": torch.ones(16)}
        case "GPTQ":
            return {f"{stem}.qweight": whole.int(), f"{stem}.scales": scale, f"{stem}.qzeros": torch.ones(1).int()}
        case "fp8":
            return {UP: weight.to(torch.float8_e4m3fn)}
        case "fp8 with scales":
            return {UP: weight.to(torch.float8_e4m3fn), f"{UP}_scale_inv": scale}
        case "a scale beside a bfloat16 weight":
            return {UP: weight.bfloat16(), f"{stem}.weight_scale": scale}
    return {}


@pytest.mark.parametrize(
    "how",
    [
        *("int8 alone", "bitsandbytes int8", "bitsandbytes 4-bit", "GPTQ", "fp8", "fp8 with scales"),
        *("a scale beside a bfloat16 weight", "config"),
    ],
)
def test_quantised_weights_are_refused_with_that_word(how: str, tmp_path: Path) -> None:
    decoder("qwen3").save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    weight = stored.pop(UP)
    save_file(stored | (quantised(how, weight) or {UP: weight}), tmp_path / WEIGHTS)
    if how == "config":
        edit_config(tmp_path, quantization_config={"quant_method": "awq"})
    with pytest.raises(RequestError, match="quantised"):
        load_model(tmp_path, torch.float32)


def test_weights_in_float32_are_read_in_float32_whatever_the_config_says(tmp_path: Path) -> None:
    model = decoder("qwen3")
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, dtype="bfloat16", torch_dtype="bfloat16")
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(model))


def test_kernels_that_a_config_asks_for_are_no_part_of_the_model(tmp_path: Path) -> None:
    model = decoder("qwen3")
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(model))


def test_a_config_that_contradicts_itself_is_one_sentence(tmp_path: Path) -> None:
    decoder("qwen3").save_pretrained(tmp_path)
    for changes in ({"num_attention_heads": 5}, {"rope_scaling": 7}, {"num_hidden_layers": "two"}):
        original = (tmp_path / "config.json").read_text()
        edit_config(tmp_path, **changes)
        with pytest.raises(RequestError):
            load_model(tmp_path, torch.float32)
        (tmp_path / "config.json").write_text(original)


def test_a_model_that_transformers_does_not_know_is_read_by_names_and_not_scored(tmp_path: Path) -> None:
    decoder("qwen3").save_pretrained(tmp_path)
    edit_config(tmp_path, model_type="somebodys_own")
    source = ModelFolder(tmp_path).source
    assert source.layout.architecture is None
    assert len([weight for weight in weights_of(source) if weight.in_scope]) == 2 * 7
    with pytest.raises(RequestError, match=r"model_type 'somebodys_own' is none of transformers'"):
        load_model(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["layers.0.attention.wq.weight", "tok_embeddings.weight"], "torchtitan's or Meta's names"),
        (["decoder.layers.0.self_attention.linear_qkv.weight"], "Megatron's names"),
    ],
)
def test_a_misfit_says_whose_names_these_are(names: list[str], sentence: str, tmp_path: Path) -> None:
    decoder("llama").save_pretrained(tmp_path)
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / WEIGHTS)
    assert sentence in ModelFolder(tmp_path).missing()[0]


@pytest.mark.parametrize("family", VISION)
def test_of_a_model_of_images_the_decoder_alone_is_in_scope_whatever_its_names(family: str, tmp_path: Path) -> None:
    """transformers saves these under the names of the hub, and holds them under others."""
    model = vision_model(family)
    model.save_pretrained(tmp_path)
    folder = ModelFolder(tmp_path)
    assert folder.missing() == []
    assert torch.equal(logits(load_model(tmp_path, torch.float32)), logits(model))
    inside = [weight.module for weight in weights_of(folder.source) if weight.in_scope]
    assert len(inside) == 2 * 7
    assert all(module.startswith("model.language_model.layers.") for module in inside)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / WEIGHTS)
    assert ModelFolder(tmp_path).source.names() == folder.source.names()

"""Small runs as other trainers leave them, written by the libraries that they use."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import Shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

RANKS = 2
_SIZES = {
    "vocab_size": 33,  # odd, so that two ranks get different numbers of rows
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "glm4": {},
    "llama": {},
    "phi3": {},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "mixtral": {"num_local_experts": 3},
}


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of a family with random weights of size 0.02."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES[family], **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The same model after every weight took a step of size 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    return model


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a Hugging Face folder, by safetensors' own loader."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@dataclass(frozen=True)
class Sharding:
    """One model to be spread over two ranks and saved.

    Attributes:
        model: a Hugging Face folder.
        out: where the checkpoint is written.
        style: ``verl`` (torch.save by each rank), ``dcp`` (the state dict), or ``dcp-nested`` ({"model": state dict}
            beside an optimiser's state, as accelerate and torchtitan do).
        columns: split matrices by columns instead of rows.
        first: by FSDP's first version, as verl sets it up, instead of its second.
        copies: a mesh of two copies of one shard instead of two shards.
    """

    model: Path
    out: Path
    style: str
    columns: bool = False
    first: bool = False
    copies: bool = False


def save_sharded(shardings: Sequence[Sharding], rendezvous: Path) -> None:
    """Two gloo processes shard each model with FSDP2 and save it."""
    mp.spawn(_rank, args=(list(shardings), rendezvous), nprocs=RANKS)


def _rank(rank: int, shardings: list[Sharding], rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    for sharding in shardings:
        model = AutoModelForCausalLM.from_pretrained(sharding.model, dtype="auto")
        shape, names = ((RANKS, 1), ("ddp", "fsdp")) if sharding.copies else ((RANKS,), ("fsdp",))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        if sharding.first:
            _save(sharding, _first_fsdp_state(model, mesh), rank)
            continue
        by_columns = (lambda parameter: Shard(parameter.ndim - 1)) if sharding.columns else None
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, shard_placement_fn=by_columns)
        fully_shard(model, mesh=mesh)
        _save(sharding, model.state_dict(), rank)
    dist.barrier()
    dist.destroy_process_group()


def _first_fsdp_state(model: PreTrainedModel, mesh: DeviceMesh) -> Mapping[str, Any]:
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={type(model.model.layers[0])})
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_mesh=mesh, device_id=torch.device("cpu"), use_orig_params=False
    )
    FullyShardedDataParallel.set_state_dict_type(
        sharded, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=True)
    )
    state: Mapping[str, Any] = sharded.state_dict()
    return state


def _save(sharding: Sharding, state: Mapping[str, Any], rank: int) -> None:
    sharding.out.mkdir(parents=True, exist_ok=True)
    if sharding.style == "verl":
        torch.save(state, sharding.out / f"model_world_size_{RANKS}_rank_{rank}.pt")
    elif sharding.style == "dcp":
        dcp.save(dict(state), checkpoint_id=sharding.out)
    else:
        moments = {f"state.{name}.exp_avg": tensor for name, tensor in state.items()}
        dcp.save({"model": dict(state), "optim": moments, "step": 3}, checkpoint_id=sharding.out)
    dist.barrier()


def cached_revisions(cache: Path, repository: str, revisions: Mapping[str, Path]) -> None:
    """Folders as revisions of a repository in huggingface_hub's own cache."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    for number, (name, folder) in enumerate(revisions.items()):
        commit = f"{number:040x}"
        (place / "refs" / name).write_text(commit)
        shutil.copytree(folder, place / "snapshots" / commit)

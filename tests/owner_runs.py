"""Runs as their owners have them on disk: tiny, but written by the libraries that write the real ones.

The paths are those of docs/bring-your-own.md, whose commands are tried on them.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from foreign_runs import RANKS, Sharding, cached_revisions, save_sharded
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

BASE = Path("models/base")
HF, VERL, DCP, TRL, ADAPTER = (Path("runs") / name for name in ("hf", "verl", "dcp", "trl", "lora"))
HUB_CACHE, HUB_RUN = Path("hub"), "acme/my-run"
STEPS = (10, 20, 30, 40, 50, 60)


def make_runs(root: Path) -> None:
    """The base, runs, and a task to score them on, under their paths in the document.

    ``HF``, ``VERL``, ``DCP`` and the repository on the hub hold the same steps; TRL trained the other two runs.
    """
    write_base(root / BASE)
    copies = {step: root / HF / f"step_{step}" for step in STEPS}
    _write_moved(root / BASE, copies)
    _write_sharded(root / BASE, copies, root / VERL, root / DCP)
    train_with_trl(root / BASE, root / TRL)
    train_with_trl(root / BASE, root / ADAPTER, adapter=True)
    cached_revisions(
        root / HUB_CACHE, HUB_RUN, {"main": root / BASE} | {f"step_{step}": copies[step] for step in STEPS}
    )
    write_task(root / "tasks")


def write_base(folder: Path) -> None:
    """A qwen3 of 2 layers in bfloat16, as models are published."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer("0123456789+-=;")
    config = Qwen3Config(
        **token_ids(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,  # so large that weights say something
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_moved(base: Path, folders: dict[int, Path]) -> None:
    """Float32 models on a path away from the base: one direction for each matrix, and noise of half its norm."""
    start = {name: tensor.clone() for name, tensor in _load(base).state_dict().items()}
    moved = _load(base)
    generator = torch.Generator().manual_seed(1)
    direction = {name: _direction(tensor, generator) for name, tensor in start.items()}
    for step, folder in folders.items():
        g = 1 - math.exp(-step / 40)
        moved.load_state_dict({name: start[name] + g * direction[name] for name in start})
        moved.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _direction(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim != 2:
        return 0.001 * normal
    u = torch.randn(tensor.shape[0], generator=generator)
    v = torch.randn(tensor.shape[1], generator=generator)
    return 2 * (torch.outer(u / u.norm(), v / v.norm()) + 0.5 * normal / normal.norm())


def _write_sharded(base: Path, copies: dict[int, Path], verl: Path, dcp: Path) -> None:
    """The same steps as verl's FSDP workers leave them, and as torch.distributed.checkpoint does, in float32."""
    actors = {step: verl / f"global_step_{step}" / "actor" for step in copies}
    shardings = [Sharding(copies[step], actor, "verl") for step, actor in actors.items()]
    shardings += [Sharding(copies[step], dcp / f"step_{step}", "dcp-nested") for step in copies]
    save_sharded(shardings, verl.with_name("rendezvous"))  # a file that is gone when the processes are
    for actor in actors.values():  # what else verl writes there
        for rank in range(RANKS):
            for what in ("optim", "extra_state"):
                torch.save({}, actor / f"{what}_world_size_{RANKS}_rank_{rank}.pt")
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": RANKS}))
        AutoModelForCausalLM.from_pretrained(base).config.save_pretrained(actor / "huggingface")
        AutoTokenizer.from_pretrained(base).save_pretrained(actor / "huggingface")
        torch.save({}, actor.parent / "data.pt")
    (verl / "latest_checkpointed_iteration.txt").write_text(str(max(copies)))


def train_with_trl(base: Path, run: Path, *, adapter: bool = False) -> None:
    """Six steps of TRL's GRPO in bfloat16, every second one saved; with ``adapter`` of a LoRA adapter over the base."""
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    settings = GRPOConfig(
        output_dir=str(run),
        max_steps=6,
        save_steps=2,
        model_init_kwargs={"dtype": "bfloat16"},  # TRL's own default is float32
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    trainer = GRPOTrainer(
        model=str(base),
        reward_funcs=_share_of_digits,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(4) for b in range(4)]}),
        peft_config=lora if adapter else None,
    )
    trainer.train()


def _share_of_digits(completions: Sequence[str], **_: object) -> list[float]:
    return [sum(letter.isdigit() for letter in text) / max(len(text), 1) for text in completions]


def write_task(folder: Path) -> None:
    """The task of docs/bring-your-own.md, as it stands there: its own problems, so that nothing is downloaded."""
    folder.mkdir(parents=True)
    document = (Path(__file__).parent.parent / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```\w+\n# tasks/(\S+)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")
    assert (folder / "sums.yaml").is_file()


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model

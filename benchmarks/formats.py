"""docs/formats.md: every family of decoders, through every format, against transformers' and PEFT's own models.

A tiny model of each family (tests/families.py) moves a little and is saved in each format. The step is then read over
its base, put into a model built from the base's config, and its logits are compared with those of the model that was
saved; for adapters with PEFT's own reload. Matrices are compared with the files' by the tests, bit for bit.

    .venv/bin/python benchmarks/formats.py
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from document import machine
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.errors import RequestError
from rlstride.trajectory.architecture import build_model
from rlstride.trajectory.filling import fill
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.scope import scope_of, weights_of
from rlstride.trajectory.sources.recognise import find_checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from families import DECODERS, VISION, decoder, vision_model  # noqa: E402

OUT = ROOT / "docs" / "formats.md"
TEXT = """# Formats and families

`rlstride` reads a checkpoint in any of these formats, of any of these families. The table is written by
`.venv/bin/python benchmarks/formats.py`; {machine}

A cell is the largest difference of a logit, as a share of the largest logit, between two models: the step as
`rlstride evaluate` makes it, and the model that was saved. For LoRA the second is PEFT's own reload of the adapter.
0 means equal to the bit. "refused" means one sentence and exit status 2.

| column | what was saved |
|---|---|
| folder | `save_pretrained`, in one file |
| shards | `save_pretrained`, in several files with an index |
| compiled | one safetensors file of a state dict whose names begin with `_orig_mod.` |
| DCP | `torch.distributed.checkpoint` of {{"model": state dict}} |
| ranks | `model_world_size_1_rank_0.pt`, as verl's FSDP workers write it |
| LoRA | PEFT, rank 2, every linear layer |
| in scope | matrices inside the decoder layers, their share of the parameters, and what of it is not taken apart |

Two more formats are compared bit for bit in the tests. FSDP over two ranks, in both versions of it, split by rows, by
columns and on a mesh with copies: `tests/unit/test_sources_sharded.py`. DeepSpeed ZeRO 1 to 3, from files that it
wrote: `tests/unit/test_sources_zero.py`.

{table}

## What is refused

| what | why |
|---|---|
| fp8, int8, 4-bit, GPTQ, AWQ, GPT-OSS in MXFP4, or a config that says so | the files do not hold the weights |
| a folder with one weight file and shards that differ | nothing tells which is meant |
| an output head that differs from the embedding that it is tied to | config and files contradict each other |
| LoRA or a whole copy of a tied embedding or head | PEFT unties it, and an update of one is none of the other |
| LoRA of stacked experts (`target_parameters`), DoRA, PiSSA and the like | it is more than B A: merge it with PEFT |
| names of torchtitan, Megatron, Meta's or llama.cpp's files | rows in another order: the sentence says how to convert |
| models that transformers does not know | they are read by their tensors' names, which is told; they cannot be scored |
"""


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model.eval()(input_ids=torch.arange(9, 29)[None]).logits
    return found


def save_folder(model: PreTrainedModel, out: Path) -> None:
    model.save_pretrained(out)


def save_shards(model: PreTrainedModel, out: Path) -> None:
    model.save_pretrained(out, max_shard_size="12KB")


def save_compiled(model: PreTrainedModel, out: Path) -> None:
    from safetensors.torch import save_file

    state = {f"_orig_mod.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, out / "model.safetensors")


def save_dcp(model: PreTrainedModel, out: Path) -> None:
    dcp.save({"model": model.state_dict()}, checkpoint_id=out, no_dist=True)


def save_ranks(model: PreTrainedModel, out: Path) -> None:
    torch.save(model.state_dict(), out / "model_world_size_1_rank_0.pt")


FORMATS: dict[str, Callable[[PreTrainedModel, Path], None]] = {
    "folder": save_folder,
    "shards": save_shards,
    "compiled": save_compiled,
    "DCP": save_dcp,
    "ranks": save_ranks,
}


def read(base: ModelFolder, step: Path) -> PreTrainedModel:
    """The step as it is scored."""
    checkpoint = find_checkpoint(step)
    assert checkpoint is not None
    model = build_model(base.path, torch.float32)
    fill(model, base.step(checkpoint), base.layout)
    return model


def difference(found: Tensor, expected: Tensor) -> str:
    share = float((found - expected).abs().max() / expected.abs().max())
    return "0" if share == 0 else f"{share:.0e}"


def lora(base: ModelFolder, model: PreTrainedModel, out: Path) -> str:
    """The cell of LoRA."""
    try:
        adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    except ValueError:
        return "PEFT cannot"
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(out)
    try:
        found = logits(read(base, out))
    except RequestError:
        return "refused"
    try:
        expected = logits(PeftModel.from_pretrained(type(model).from_pretrained(base.path), out))
    except (AttributeError, RuntimeError):  # of a router, whose output PEFT takes for a tensor
        return "PEFT cannot"
    return difference(found, expected)


def row(family: str, make: Callable[[], PreTrainedModel], folder: Path) -> dict[str, str]:
    """A family's cells."""
    make().save_pretrained(folder / "base")
    base, cells = ModelFolder(folder / "base"), {"family": family}
    assert base.missing() == []
    moved = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    for name, save in FORMATS.items():
        step = folder / name / "step_1"
        step.mkdir(parents=True)
        save(moved, step)
        cells[name] = difference(logits(read(base, step)), logits(moved))
    cells["LoRA"] = lora(base, make(), folder / "lora" / "step_1")
    cells["in scope"] = str(scope_of(weights_of(base.source)))
    return cells


def main() -> None:
    rows = []
    families = {name: lambda name=name: decoder(name) for name in DECODERS}
    families |= {name: lambda name=name: vision_model(name) for name in VISION}
    for family, make in families.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(family, make, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([each[column] for column in columns] for each in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    OUT.write_text(TEXT.format(table=table, machine=machine()), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes edited models as Hugging Face folders with a card that says what they are."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rlstride.atomic_files import atomic_folder, write_text
from rlstride.outputs import CARD, MODEL_MARK, require_free_folder
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.architecture import CONFIG
from rlstride.trajectory.compare import wider
from rlstride.trajectory.description import TOKENIZER_FILES
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.hf import SINGLE, read_json
from rlstride.trajectory.sources.lora import CONFIG as ADAPTER_CONFIG
from rlstride.trajectory.store import Trajectory

EDITED_MODEL = "an edited model"  # what a folder is said to hold
_COPIED = {".json", ".txt", ".model", ".jinja", ".py"}  # config, tokenizer, chat template, a family's own code
_NOT_COPIED = {
    ADAPTER_CONFIG,
    "quantization_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "pretraining.json",
}


def write_model(
    out: Path,
    base_folder: Path,
    tensors_by_name: Mapping[str, Tensor],
    card: str,
    tokenizer_folder: Path | None = None,
) -> None:
    """Writes a model as an HF folder that appears whole or not at all.

    Args:
        out: the folder; one that an earlier call wrote is replaced.
        base_folder: HF folder whose configuration is copied.
        tensors_by_name: every tensor of the model by name, fused matrices apart (tied ones once). Where some are wider
            than the base's, config.json says so, or transformers would round them to the base's dtype again.
        card: README.md, without a title.
        tokenizer_folder: whose tokenizer is copied; the base's if left out.

    Raises:
        RequestError: ``out`` holds something that no earlier call wrote.
    """
    with written_folder(out, card) as partial:
        base = ModelFolder(base_folder)
        _copy_description(base_folder, partial, tokenizer_folder or base_folder)
        stored = {name: tensor.contiguous() for name, tensor in base.as_stored(tensors_by_name).items()}
        save_file(stored, partial / SINGLE, metadata={"format": "pt"})
        _state_dtype(partial / CONFIG, stored, base.stored)


def _copy_description(base: Path, out: Path, tokenizer: Path) -> None:
    """Copies what describes the model and its tokens, and nothing that would add to its weights."""
    own = {file.name: file for file in base.iterdir() if file.suffix in _COPIED}
    if tokenizer != base:
        own = {name: file for name, file in own.items() if not _is_tokenizers(name)}
        own |= {file.name: file for file in tokenizer.iterdir() if _is_tokenizers(file.name)}
    for name, file in sorted(own.items()):
        if file.is_file() and name not in _NOT_COPIED and not name.endswith(".index.json"):
            # Bytes alone: a base's read-only bits would keep the folder from being replaced.
            (out / name).write_bytes(file.read_bytes())


def _is_tokenizers(name: str) -> bool:
    return name in TOKENIZER_FILES or name == "generation_config.json"


@contextlib.contextmanager
def written_folder(out: Path, card: str) -> Iterator[Path]:
    """A folder with a card, to write a model into; it appears whole or not at all.

    Args:
        out: the folder; one that an earlier call wrote is replaced.
        card: README.md, without a title.

    Raises:
        RequestError: ``out`` holds something that no earlier call wrote.
    """
    out = out.resolve()
    require_free_folder(out, EDITED_MODEL, force=True)
    with atomic_folder(out) as partial:
        yield partial
        write_text(partial / CARD, f"{MODEL_MARK}\n# {out.name}\n\n{card.rstrip()}\n")


def _state_dtype(config: Path, tensors: Mapping[str, Tensor], base: HFFolder) -> None:
    """Writes into config.json which dtype the tensors have, where it is not the base's."""
    own = [tensors[name].dtype for name in base.names() if name in tensors and tensors[name].dtype != base.dtype(name)]
    if not own:
        return
    content, dtype = read_json(config), str(reduce(wider, own)).removeprefix("torch.")
    for section in (content, content.get("text_config", {})):
        section.pop("torch_dtype", None)  # as transformers called it before 5
        section["dtype"] = dtype
    write_text(config, json.dumps(content, indent=2) + "\n")


NOT_MEASURED = "**Its accuracy is not measured here**: evaluate it before use."


def model_card(
    trajectory: Trajectory, facts: Mapping[str, object], steps: Sequence[int], standing: str = NOT_MEASURED
) -> str:
    """The text of a card: the given facts, and what the model was made from.

    Args:
        trajectory: where base and steps were read.
        facts: what was done, by name, such as method and step.
        steps: the kept steps that were read.
        standing: what is known of its accuracy.
    """
    manifest = trajectory.manifest
    made_from = {
        "base": manifest.base.name,
        **{f"base {name}, SHA-256": digest for name, digest in trajectory.digests(0).items()},
        **{
            f"step {step} {name}, SHA-256": digest
            for step in steps
            for name, digest in trajectory.digests(step).items()
        },
        "algorithm": manifest.algorithm,
        "seed": manifest.seed,
    }
    lines = [f"- {name}: {value}" for name, value in {**facts, **made_from}.items()]
    return "\n".join(
        [
            "Made from the weights of a reinforcement-learning run, without training.",
            standing,
            "",
            *lines,
        ]
    )


def base_tensors(reader: UpdateReader) -> dict[str, Tensor]:
    """Every tensor of the base, as stored."""
    return {weight.name: reader.stored(weight, 0) for weight in reader.weights}

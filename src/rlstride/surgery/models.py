"""Writes edited models as Hugging Face folders with a card that says what they are."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rlstride.outputs import CARD, MODEL_MARK, require_free_folder
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.compare import wider
from rlstride.trajectory.files import atomic_folder, write_text
from rlstride.trajectory.layout import as_stored
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.hf import read_json
from rlstride.trajectory.store import Trajectory

_WEIGHTS = "model.safetensors"
EDITED_MODEL = "an edited model"  # what a folder is said to hold
_COPIED = {".json", ".txt", ".model", ".jinja", ".py"}  # config, tokenizer, chat template, a family's own code


def write_model(out: Path, base_folder: Path, tensors_by_name: Mapping[str, Tensor], card: str) -> None:
    """Writes a model as an HF folder that appears whole or not at all.

    Args:
        out: the folder; one that an earlier call wrote is replaced.
        base_folder: HF folder whose configuration and tokenizer are copied.
        tensors_by_name: every tensor of the model by name, fused matrices apart (tied ones once). Where some are wider
            than the base's, config.json says so, or transformers would round them to the base's dtype again.
        card: README.md, without a title.

    Raises:
        RequestError: ``out`` holds something that no earlier call wrote.
    """
    with written_folder(out, card) as partial:
        for file in sorted(base_folder.iterdir()):
            if file.is_file() and file.suffix in _COPIED and not file.name.endswith(".index.json"):
                # Bytes alone: a base's read-only bits would keep the folder from being replaced.
                (partial / file.name).write_bytes(file.read_bytes())
        stored = {name: tensor.contiguous() for name, tensor in as_stored(tensors_by_name, base_folder).items()}
        save_file(stored, partial / _WEIGHTS, metadata={"format": "pt"})
        _state_dtype(partial / "config.json", stored, HFFolder(base_folder))


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


def model_card(trajectory: Trajectory, facts: Mapping[str, object], standing: str = NOT_MEASURED) -> str:
    """The text of a card: the given facts, and what the model was made from.

    Args:
        trajectory: where base and steps were read.
        facts: what was done, by name, such as method and step.
        standing: what is known of its accuracy.
    """
    manifest = trajectory.manifest
    made_from = {
        "base": manifest.base.name,
        **{f"base {name}, SHA-256": digest for name, digest in manifest.base.sha256.items()},
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

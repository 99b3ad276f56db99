"""A checkpoint's tensors in a model that transformers built: the other end of the one reader."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlstride.errors import RequestError, WorkError
from rlstride.trajectory.architecture import build_model
from rlstride.trajectory.layout import Layout
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources.hf import read_json, same_bits
from rlstride.trajectory.sources.source import NamedTensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ENDINGS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_model(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """The model of a Hugging Face folder, built from its config.json alone and filled from its weights.

    Raises:
        RequestError: transformers cannot build it, a tensor is missing, or two of them contradict each other.
    """
    found = ModelFolder(folder)
    if problems := found.problems():
        raise RequestError(problems[0])
    model = build_model(folder, dtype)
    fill(model, found.source, found.layout)
    state_endings(model, folder)
    return model


@torch.no_grad()
def fill(model: "PreTrainedModel", tensors: NamedTensors, layout: Layout) -> None:
    """Copies a checkpoint's tensors into a model of its architecture, whichever it fuses; one of them is read back.

    Args:
        model: built from the config that the layout is of.
        tensors: the model's own, fused matrices apart.
        layout: which says what the model fuses.

    Raises:
        RequestError: the checkpoint lacks one of the model's parameters, or holds it in another shape, or its files are
            damaged.
        WorkError: what was read back is not what was copied.
    """
    state, held = model.state_dict(), set(tensors.names())
    tied = layout.tied(state)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, place in state.items():
        if name in tied:
            continue
        parts = layout.parts(name, tuple(place.shape)) if layout.may_split(name) else []
        if not parts and name not in held and name not in parameters:
            continue  # a buffer that the files leave to the model's code
        for part in parts:
            part.write(place, tensors.tensor(part.name))
        if not parts:
            _copy(place, tensors.tensor(name), name)
    _read_back(state, tensors, held)


def _copy(place: Tensor, tensor: Tensor, name: str) -> None:
    if place.shape != tensor.shape:
        raise RequestError(f"{name}: its shape is {tuple(tensor.shape)}, but the model's is {tuple(place.shape)}")
    place.copy_(tensor)


def _read_back(state: Mapping[str, Tensor], tensors: NamedTensors, held: set[str]) -> None:
    """Compares one tensor of the model with its source, bit by bit: the last of those that both have whole."""
    name = next((name for name in sorted(state, reverse=True) if name in held), None)
    if name is None:
        return
    expected = tensors.tensor(name).to(state[name].dtype)
    if not same_bits(state[name].cpu(), expected):
        raise WorkError(f"{name}: the model's tensor is not its file's after it was put there")


def state_endings(model: "PreTrainedModel", *folders: Path) -> None:
    """Tells a model where its completions end and what pads them; nothing else of a generation_config.json counts.

    Args:
        model: whose generation_config is replaced.
        folders: of which the first that has a generation_config.json says so; else the model's config does.
    """
    from transformers import GenerationConfig

    files = [folder / "generation_config.json" for folder in folders]
    stated = next((read_json(file) for file in files if file.is_file()), {})
    known = {key: stated.get(key, getattr(model.generation_config, key, None)) for key in _ENDINGS}
    model.generation_config = GenerationConfig(**known)

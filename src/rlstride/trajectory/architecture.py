"""What a model consists of, as transformers builds it from config.json: without weights, and not from name patterns."""

import hashlib
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlstride.atomic_files import write_if_possible
from rlstride.errors import RequestError, first_line
from rlstride.trajectory.sources.hf import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG = "config.json"
CACHE = ".architecture.json"
# Which kernels a trainer's machine had: no part of the model, and perhaps not installed here.
_KERNELS = {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"}
# What a model that cannot be built as its config says makes of itself.
_CANNOT = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Architecture:
    """The tensors of a model's state dict, and what each of them is.

    Attributes:
        config: of the decoder, every default filled in.
        shapes: of every tensor; tied ones under each of their names.
        parameters: the names of those that are trained; the others are buffers.
        tied: for a name that shares another's tensor, such as lm_head.weight, that other name.
        layers: for every tensor inside a decoder layer, the layer's index.
        matrices: the tensors inside decoder layers that multiply: a matrix, or a stack of them for experts.
        transposed: the matrices that are stored as (in, out), as GPT-2's are.
        renaming: makes what gives the name in a state dict that transformers reads a stored name into.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    tied: Mapping[str, str]
    layers: Mapping[str, int]
    matrices: frozenset[str]
    transposed: frozenset[str]
    renaming: Callable[[], Callable[[str], str]] = field(repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """All of it but the renaming, as JSON can hold it."""
        sets = {name: sorted(getattr(self, name)) for name in ("parameters", "matrices", "transposed")}
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        known = {"config": dict(self.config), "shapes": shapes, "tied": dict(self.tied), "layers": dict(self.layers)}
        return known | sets


def read_architecture(folder: Path, cache: Path | None = None) -> Architecture | None:
    """The model that a folder's config.json describes; None where transformers does not know such a model.

    Args:
        folder: a Hugging Face folder.
        cache: a folder that remembers it: transformers takes seconds to import, which most reading need not wait for.

    Raises:
        RequestError: config.json is damaged, or no model can be built as it says.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    content = read_json(path)
    content.pop("quantization_config", None)  # how weights are stored, not what they are
    text = json.dumps(content, sort_keys=True)
    if cache is None:
        return _architecture(text, str(path))
    key = hashlib.sha256(f"{version('transformers')} {text}".encode()).hexdigest()
    known = _remembered(cache / CACHE, key, text, str(path))
    if known is None and (known := _architecture(text, str(path))) is not None:
        write_if_possible(cache / CACHE, json.dumps({"key": key, **known.facts()}) + "\n")
    return known


def _remembered(file: Path, key: str, content: str, place: str) -> Architecture | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("key") != key:
            return None
        return Architecture(
            config=found["config"],
            shapes={name: tuple(shape) for name, shape in found["shapes"].items()},
            parameters=frozenset(found["parameters"]),
            tied=found["tied"],
            layers=found["layers"],
            matrices=frozenset(found["matrices"]),
            transposed=frozenset(found["transposed"]),
            renaming=partial(_renaming_of, content, place),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _renaming_of(content: str, place: str) -> Callable[[str], str]:
    found = _architecture(content, place)
    return str if found is None else found.renaming()


@lru_cache(maxsize=8)
def _architecture(content: str, place: str) -> Architecture | None:
    import torch

    try:
        config = model_config(json.loads(content))
        if config is None:
            return None
        with torch.device("meta"):
            model = empty_model(config)
    except _CANNOT as error:
        raise RequestError(f"{place}: transformers cannot build this model ({first_line(error)})") from error
    return describe(model)


def model_config(content: Mapping[str, Any]) -> "PretrainedConfig | None":
    """transformers' configuration of a config.json; None where its model_type is not one of transformers'.

    Raises:
        ValueError: the content is none of that model type's.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = content.get("model_type")
    if kind not in CONFIG_MAPPING:
        return None
    # A copy: transformers writes what it settles into the dictionaries that it is given.
    known = {key: deepcopy(value) for key, value in content.items() if key not in _KERNELS}
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(known)
    except Exception as error:  # what a config that does not fit its own class makes of itself is of many kinds
        raise ValueError(first_line(error)) from error
    return config


def empty_model(config: "PretrainedConfig", dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """A causal language model of a configuration, its weights not initialised, ready to score.

    Args:
        config: of a decoder, or of a model of images and text, whose decoder is then meant.
        dtype: of its parameters; float32 if left out.

    Raises:
        ValueError: transformers has no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    known = type(config) in AutoModelForCausalLM._model_mapping
    kind = AutoModelForCausalLM if known else AutoModelForImageTextToText
    with no_init_weights():
        model: PreTrainedModel = kind.from_config(config, dtype=dtype or torch.float32)
    model.tie_weights()
    return model.eval()


def build_model(folder: Path, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """The model that a folder's config.json describes, alone: neither its weights nor an adapter beside them are read.

    Args:
        folder: a Hugging Face folder.
        dtype: of its parameters; float32 if left out.

    Raises:
        RequestError: there is no config.json, or transformers cannot build what it describes.
    """
    place, content = folder / CONFIG, read_json(folder / CONFIG)
    content.pop("quantization_config", None)
    try:
        config = model_config(content)
        if config is None:
            raise RequestError(
                f"{place}: model_type {content.get('model_type')!r} is none of transformers' {version('transformers')}"
            )
        return empty_model(config, dtype)
    except _CANNOT as error:
        raise RequestError(f"{place}: transformers cannot build this model ({first_line(error)})") from error


def describe(model: "PreTrainedModel") -> Architecture:
    """The architecture of a model in memory, on any device."""
    from transformers.pytorch_utils import Conv1D

    state = model.state_dict(keep_vars=True)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} & state.keys()
    first: dict[int, str] = {}
    order = sorted(state, key=lambda name: name not in model.all_tied_weights_keys.values())  # what is tied to, first
    tied = {name: found for name in order if (found := first.setdefault(id(state[name]), name)) != name}
    indices, matrices = _decoder_layers(model)
    layers = {name: indices[owner] for name in state if (owner := _owner(name, indices)) is not None}
    return Architecture(
        config=model.config.get_text_config().to_dict(),
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        parameters=frozenset(parameters),
        tied=tied,
        layers=layers,
        matrices=frozenset(matrices & state.keys()),
        transposed=frozenset(f"{name}.weight" for name, each in model.named_modules() if isinstance(each, Conv1D)),
        renaming=_renaming(model),
    )


def _owner(name: str, layers: Mapping[str, int]) -> str | None:
    """The decoder layer that a tensor is in."""
    parts = name.split(".")
    return next((stem for end in range(1, len(parts)) if (stem := ".".join(parts[:end])) in layers), None)


def _decoder_layers(model: "PreTrainedModel") -> tuple[dict[str, int], set[str]]:
    """The index of each decoder layer by its module's name, and the tensors in them that multiply."""
    from torch import nn

    decoder, count = model.get_decoder(), model.config.get_text_config().num_hidden_layers
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:  # the list of layers is the longest that there is
        lists = sorted((each for each in decoder.modules() if isinstance(each, nn.ModuleList)), key=len)[-1:]
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    found, matrices = dict[str, int](), set[str]()
    for index, layer in enumerate(lists[0] if lists else []):
        found[names[id(layer)]] = index
        for name, module in layer.named_modules(prefix=names[id(layer)]):
            weights = module.named_parameters(recurse=False)
            matrices |= {f"{name}.{own}" for own, weight in weights if _multiplies(module, own, weight)}
    return found, matrices


def _multiplies(module: Any, own: str, weight: Any) -> bool:
    """Whether a parameter is a matrix, or the experts' stack of them, rather than a bias, a filter or a table."""
    from torch import nn

    if isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d) or "bias" in own:
        return False
    experts = "expert" in type(module).__name__.lower()
    return weight.ndim == 3 or (weight.ndim == 2 and (own == "weight" or experts))


def _renaming(model: "PreTrainedModel") -> Callable[[], Callable[[str], str]]:
    """What transformers renames stored tensors to: its own list, such as that of the prefixes of vision models."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    known = [each for each in get_model_conversion_mapping(model) if not isinstance(each, WeightConverter)]

    def renaming() -> Callable[[str], str]:
        own = deepcopy(known)  # some of them remember what they have seen

        def renamed(name: str) -> str:
            for each in own:
                name, _ = each.rename_source_key(name)
            return name

        return renamed

    return renaming

"""How large models and adapters are, from their configurations alone; biases and norms (under 1 %) are left out."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlstride.config.adapters import Adapter
from rlstride.config.models import PublishedModel, TinyModel

TINY_VOCABULARY = 20  # characters and special tokens of the testbed's tasks
Model = TinyModel | PublishedModel


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    Attributes:
        layers: of the decoder.
        hidden: width of its residual stream.
        wide: width of its MLPs.
        queries: of all query heads together.
        keys: of all key heads together; values have the same.
    """

    layers: int
    hidden: int
    wide: int
    queries: int
    keys: int


def shape_of(model: Model) -> Shape | None:
    """A model's shape; of one that only its name tells the size of, that of a usual decoder (llama) of this size."""
    config = _configuration(model)
    if config is not None:
        (queries, hidden), (keys, _), *_, (_, wide) = layer_matrices(config)
        return Shape(int(config["num_hidden_layers"]), hidden, wide, queries, keys)
    size = model_parameters(model)
    if size is None:
        return None
    # Layers are a 128th of the width in llama and qwen, and have 12 hidden^2 parameters.
    hidden = round((128 * size / 12) ** (1 / 3))
    return Shape(max(1, round(hidden / 128)), hidden, round(8 / 3 * hidden), hidden, max(1, hidden // 4))


def model_parameters(model: Model) -> float | None:
    """Parameters of a model; None where neither a configuration nor its name (7B) tells."""
    config = _configuration(model)
    if config is not None:
        return decoder_parameters(config, int(config["vocab_size"]))
    size = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", _source(model))
    return float(size[1]) * {"B": 1e9, "M": 1e6}[size[2]] if size else None


def adapter_parameters(adapter: Adapter, model: Model) -> int | None:
    """Trained parameters of an adapter over all 2-D weights in a model's layers; None where its shapes are not known.

    Where a family fuses matrices (glm4's gate and up), an adapter shares a factor, and is smaller by a tenth or so.
    """
    config = _configuration(model)
    if config is None:
        return None
    layer = sum(adapter.parameters(rows, cols) for rows, cols in layer_matrices(config))
    return layer * int(config["num_hidden_layers"])


def decoder_parameters(config: dict[str, Any], vocabulary: int = TINY_VOCABULARY) -> int:
    """Embeddings, attention and MLPs of a decoder.

    Args:
        config: its configuration's arguments.
        vocabulary: tokens.
    """
    layer = sum(rows * cols for rows, cols in layer_matrices(config))
    embeddings = vocabulary * int(config["hidden_size"]) * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + layer * int(config["num_hidden_layers"])


def layer_matrices(config: dict[str, Any]) -> list[tuple[int, int]]:
    """The shapes (rows, cols) of a layer's q, k, v, o, gate, up and down."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head, wide = int(config.get("head_dim") or hidden // heads), int(config["intermediate_size"])
    queries, keys = head * heads, head * int(config.get("num_key_value_heads") or heads)
    return [
        *((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)),
        *((wide, hidden), (wide, hidden), (hidden, wide)),
    ]


def _configuration(model: Model) -> dict[str, Any] | None:
    """A tiny model's architecture, or config.json of a local folder where it says enough."""
    if isinstance(model, TinyModel):
        return {"vocab_size": TINY_VOCABULARY} | model.architecture
    file = Path(_source(model)) / "config.json"
    if not file.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        decoder_parameters(config, int(config["vocab_size"]))
    except (KeyError, TypeError, ValueError):
        return None
    return config


def _source(model: Model) -> str:
    return str(model.source) if isinstance(model, PublishedModel) else ""

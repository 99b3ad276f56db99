"""One layout for every checkpoint of a model: fused matrices and expert stacks apart, tied embeddings found.

A family may store gate_proj and up_proj as one matrix, or all experts of a layer as one stack, and the same model's
files and its state dict in memory may differ in that. Here each matrix that a rank-k edit is about is a tensor of its
own, under the name that families which do not fuse give it:

    mlp.gate_up_proj.weight (2 i, h)        mlp.gate_proj.weight, mlp.up_proj.weight (i, h)
    self_attn.qkv_proj.weight               self_attn.q_proj.weight, k_proj, v_proj
    mlp.experts.gate_up_proj (e, 2 i, h)    mlp.experts.0.gate_proj.weight, mlp.experts.0.up_proj.weight, ...
    mlp.experts.down_proj (e, h, i)         mlp.experts.0.down_proj.weight, ...
    block_sparse_moe.experts.0.w1.weight    mlp.experts.0.gate_proj.weight (Mixtral; w2 is down, w3 up)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.hf import HFFolder, read_json
from rlstride.trajectory.sources.source import TensorSource

# Families whose dense gate_up_proj is gate's rows, then up's; and whose qkv_proj is q's, k's, v's rows.
_GATE_UP = {"glm", "glm4", "phi3"}
_QKV = {"phi3"}
# Families whose expert stacks are (experts, in, out), or interleave gate and up: only the experts are told apart.
_OTHER_STACKS = {"aria", "aria_text", "gpt_oss", "llama4", "llama4_text"}
_STACK = re.compile(r"(.*\.experts)\.([a-z_]+_proj)(?:\.weight)?")
_FUSED = re.compile(r"(.*\.)(gate_up_proj|qkv_proj)\.weight")
# Mixtral's files have names of their own for what its state dict calls mlp.
_MIXTRAL = re.compile(r"(.*)\.block_sparse_moe\.(gate|experts\.\d+\.w[123])\.weight")
_MIXTRAL_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|embed_in|word_embeddings)\.weight")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Part:
    """A matrix inside a stored tensor.

    Attributes:
        name: the matrix's own name.
        whole: the name of the stored tensor.
        start: its first row, in the stored tensor or in one expert of it.
        stop: the row after its last.
        expert: its index in a stack of experts; None in a plain matrix.
    """

    name: str
    whole: str
    start: int
    stop: int
    expert: int | None = None


class Layout:
    """How a model's family fuses its matrices, read from config.json.

    Attributes:
        tied: whether the output head is the embedding; None where the config does not say.
        layers: the number of decoder layers, where the config has it.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        config = config.get("text_config", config)
        self._family = str(config.get("model_type", ""))
        self._hidden = config.get("hidden_size")
        self._heads = config.get("num_attention_heads")
        self._kv_heads = config.get("num_key_value_heads") or self._heads
        self.layers: int | None = config.get("num_hidden_layers")
        self.tied: bool | None = config.get("tie_word_embeddings")

    def may_split(self, name: str) -> bool:
        """Whether :meth:`parts` needs to know the shape of this tensor."""
        return any(pattern.fullmatch(name) for pattern in (_STACK, _FUSED, _MIXTRAL))

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The matrices inside a stored tensor, in its own order; none where it stays whole.

        Raises:
            RequestError: a fused matrix cannot be divided as the config says.
        """
        stack, fused, renamed = _STACK.fullmatch(name), _FUSED.fullmatch(name), _MIXTRAL.fullmatch(name)
        if renamed and self._family == "mixtral":
            own = re.sub(r"w[123]$", lambda short: _MIXTRAL_NAMES[short[0]], renamed[2])
            return [Part(f"{renamed[1]}.mlp.{own}.weight", name, 0, shape[0])]
        if stack and len(shape) == 3:
            gate_up = stack[2] == "gate_up_proj" and self._family not in _OTHER_STACKS and shape[2] == self._hidden
            pieces = ("gate_proj", "up_proj") if gate_up else (stack[2],)
            return [
                Part(f"{stack[1]}.{expert}.{piece}.weight", name, start, stop, expert)
                for expert in range(shape[0])
                for piece, start, stop in _rows(name, pieces, [1] * len(pieces), shape[1])
            ]
        if not fused or len(shape) != 2:
            return []
        if fused[2] == "gate_up_proj" and self._family in _GATE_UP:
            rows = _rows(name, ("gate_proj", "up_proj"), [1, 1], shape[0])
        elif fused[2] == "qkv_proj" and self._family in _QKV and self._heads:
            sizes = [self._heads, self._kv_heads, self._kv_heads]
            rows = _rows(name, ("q_proj", "k_proj", "v_proj"), sizes, shape[0])
        else:
            return []
        return [Part(f"{fused[1]}{piece}.weight", name, start, stop) for piece, start, stop in rows]


class InLayout:
    """A checkpoint through its :class:`Layout`: every fused or stacked matrix is a tensor of its own."""

    def __init__(self, source: TensorSource, layout: Layout) -> None:
        self.path = source.path
        self._source = source
        stored = source.names()
        self._parts: dict[str, Part | None] = {}
        for name in stored:
            parts = layout.parts(name, source.shape(name)) if layout.may_split(name) else []
            self._parts |= {part.name: part for part in parts} if parts else {name: None}
        embedding = next((name for name in stored if _EMBEDDING.fullmatch(name)), None)
        if embedding and layout.tied:
            self._parts.pop(_HEAD, None)  # a state dict in memory lists the one matrix under both names
        absent = embedding and layout.tied is not False and _HEAD not in self._parts
        self._alias = {_HEAD: embedding} if embedding and absent else {}

    def names(self) -> list[str]:
        return sorted(self._parts)

    def own_name(self, name: str) -> str:
        """The name that a tensor is listed by: the embedding's, of the output head of tied embeddings."""
        return self._alias.get(name, name)

    def holds(self, name: str) -> bool:
        """Whether a tensor can be read: it is listed, or is the output head of tied embeddings."""
        return name in self._parts or name in self._alias

    def shape(self, name: str) -> tuple[int, ...]:
        name, part = self._find(name)
        if part is None:
            return self._source.shape(name)
        return (part.stop - part.start, self._source.shape(part.whole)[-1])

    def dtype(self, name: str) -> torch.dtype:
        name, part = self._find(name)
        return self._source.dtype(part.whole if part else name)

    def tensor(self, name: str) -> Tensor:
        name, part = self._find(name)
        return self.rows(name, 0, part.stop - part.start) if part else self._source.tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        name, part = self._find(name)
        if part is None:
            return self._source.rows(name, start, stop)
        start, stop = part.start + start, min(part.start + stop, part.stop)
        if part.expert is None:
            return self._source.rows(part.whole, start, stop)
        return self._source.rows(part.whole, part.expert, part.expert + 1)[0, start:stop]

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """L (m, r) and R (r, n) of an adapter's update W = W0 + L R; None where there are no factors."""
        name, part = self._find(name)
        found = getattr(self._source, "factors", lambda name: None)(part.whole if part else name)
        if found is None or part is None:
            return found
        left, right = found
        return left[part.start : part.stop], right

    def _find(self, name: str) -> tuple[str, Part | None]:
        name = self.own_name(name)
        if name not in self._parts:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return name, self._parts[name]


def read_layout(folder: Path) -> Layout:
    """The layout of the model in a Hugging Face folder; nothing is split where it has no config.json.

    Raises:
        RequestError: config.json is damaged.
    """
    path = folder / "config.json"
    return Layout(read_json(path) if path.is_file() else {})


def as_stored(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """A model's tensors as its Hugging Face folder stores them: the inverse of :class:`InLayout`.

    Args:
        tensors: each of the model's tensors, matrices apart.
        folder: whose names and fused shapes the result has.
    """
    base, layout = HFFolder(folder), read_layout(folder)
    stored = dict(tensors)
    for name in base.names():
        parts = layout.parts(name, base.shape(name)) if layout.may_split(name) else []
        if not parts:
            continue
        pieces = [stored.pop(part.name) for part in parts]
        whole = torch.empty(base.shape(name), dtype=reduce(torch.promote_types, (piece.dtype for piece in pieces)))
        for part, piece in zip(parts, pieces, strict=True):
            target = whole if part.expert is None else whole[part.expert]
            target[part.start : part.stop] = piece
        stored[name] = whole
    return stored


def _rows(name: str, pieces: tuple[str, ...], sizes: list[int], rows: int) -> list[tuple[str, int, int]]:
    """Each piece with its first row and the row after its last; the rows are divided in proportion to ``sizes``."""
    if rows % sum(sizes):
        raise RequestError(f"{name}: its {rows} rows cannot be divided into {', '.join(pieces)} as config.json says")
    unit, found, start = rows // sum(sizes), [], 0
    for piece, size in zip(pieces, sizes, strict=True):
        found.append((piece, start, start + unit * size))
        start += unit * size
    return found

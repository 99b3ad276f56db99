"""One layout for every checkpoint of a model: fused matrices and expert stacks apart, tied embeddings found.

A family may store gate_proj and up_proj as one matrix, or all experts of a layer as one stack, and the same model's
files and its state dict in memory may differ in that. Here each matrix that a rank-k edit is about is a tensor of its
own, under the name that families which do not fuse give it:

    mlp.gate_up_proj.weight (2 i, h)             mlp.gate_proj.weight, mlp.up_proj.weight (i, h)
    self_attn.qkv_proj.weight                    self_attn.q_proj.weight, k_proj, v_proj
    attention.query_key_value.weight             attention.q_proj.weight, ...: rows of q, k and v alternate by head
    attn.c_attn.weight (h, 3 h)                  attn.q_proj.weight, ...: columns, as GPT-2 stores (in, out)
    mlp.experts.gate_up_proj (e, 2 i, h)         mlp.experts.0.gate_proj.weight, mlp.experts.0.up_proj.weight, ...
    mlp.experts.down_proj (e, h, i)              mlp.experts.0.down_proj.weight, ...
    mlp.experts.0.w1.weight                      mlp.experts.0.gate_proj.weight (Mixtral; w2 is down, w3 up)
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.architecture import CONFIG, Architecture, read_architecture
from rlstride.trajectory.sources.hf import read_json
from rlstride.trajectory.sources.source import TensorSource

OUTSIDE_LAYERS = -1
# Families whose dense gate_up_proj is gate's rows, then up's.
_GATE_UP = {"glm", "glm4", "phi3"}
# Families whose expert stacks are (experts, in, out), or interleave gate and up: only the experts are told apart.
_OTHER_STACKS = {"aria", "gpt_oss", "llama4"}
_QKV = ("q_proj", "k_proj", "v_proj")
_STACK = re.compile(r"(.*\.experts)\.([a-z_]+_proj)(?:\.weight)?")
_FUSED = re.compile(r"(.*\.)(gate_up_proj|qkv_proj|query_key_value|c_attn|Wqkv)\.weight")
# Mixtral's files, and those of families like it, call an expert's matrices w1, w2 and w3.
_NUMBERED = re.compile(r"(.*\.experts\.\d+)\.(w[123])\.weight")
_NUMBERED_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# What is several projections in one matrix by its name, where it was not taken apart.
_STILL_FUSED = re.compile(
    r".*\.(?:gate_up_proj|qkv_proj|query_key_value|c_attn|Wqkv|in_proj(?:_(?:qkvz|qkv|ba))?|kv_a_proj_with_mqa|kv_b_proj|"
    r"fused_\w+|qkv|shared_mlp\.input_linear)(?:\.weight)?"
)
# Without an architecture: by the usual names.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|embed_in|word_embeddings)\.weight")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Part:
    """A matrix inside a stored tensor.

    Attributes:
        name: the matrix's own name.
        whole: the name of the stored tensor.
        spans: where its rows start and stop in the stored tensor, or in one expert of it; columns where ``axis`` is 1.
        axis: 0, or 1 in matrices that are stored as (in, out).
        expert: its index in a stack of experts; None in a plain matrix.
    """

    name: str
    whole: str
    spans: tuple[tuple[int, int], ...]
    axis: int = 0
    expert: int | None = None

    @property
    def size(self) -> int:
        """Its rows, or columns where ``axis`` is 1."""
        return sum(stop - start for start, stop in self.spans)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, int]:
        """Its shape, from the stored tensor's."""
        return (self.size, whole[-1]) if self.axis == 0 else (whole[-2], self.size)

    def cut(self, matrix: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Its rows ``start`` to ``stop`` out of the stored tensor, or of an expert of it."""
        stop = self.size if stop is None and self.axis == 0 else stop
        if self.axis == 1:
            return torch.cat([matrix[:, first:last] for first, last in self.spans], dim=1)[start:stop]
        wanted, offset, found = slice(start, stop), 0, []
        for first, last in self.spans:
            inside = slice(max(wanted.start - offset, 0), max((wanted.stop or 0) - offset, 0))
            found.append(matrix[first:last][inside])
            offset += last - first
        return found[0] if len(found) == 1 else torch.cat(found)

    @torch.no_grad()
    def write(self, whole: Tensor, piece: Tensor) -> None:
        """Puts the matrix into its place in the stored tensor."""
        target, offset = whole if self.expert is None else whole[self.expert], 0
        for first, last in self.spans:
            place = target[first:last] if self.axis == 0 else target[:, first:last]
            place.copy_(piece.narrow(self.axis, offset, last - first))
            offset += last - first


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in its model.

    Attributes:
        shape: its shape.
        layer: index of the decoder layer; -1 outside of the layers.
        in_scope: whether it is a matrix inside a decoder layer.
        required: whether a checkpoint must hold it: parameters, but not buffers.
        fused: whether it still is several projections in one.
    """

    shape: tuple[int, ...]
    layer: int
    in_scope: bool
    required: bool = True
    fused: bool = False


class Layout:
    """How a model's family fuses its matrices, and where each tensor stands.

    Args:
        config: of config.json.
        architecture: the model as transformers builds it; None where it knows no such model: then names decide what a
            layer is, and which matrix is the output head.

    Attributes:
        architecture: as given.
        layers: the number of decoder layers, where the config has it.
    """

    def __init__(self, config: Mapping[str, Any], architecture: Architecture | None = None) -> None:
        config = architecture.config if architecture else config.get("text_config", config)
        self.architecture = architecture
        self._config = config
        self._family = str(config.get("model_type", "")).removesuffix("_text")
        self._hidden = config.get("hidden_size")
        self._heads = int(config.get("num_attention_heads") or config.get("n_head") or config.get("n_heads") or 0)
        self._kv_heads = int(config.get("num_key_value_heads") or self._heads)
        self.layers: int | None = config.get("num_hidden_layers")
        self._tied: bool | None = config.get("tie_word_embeddings")

    def may_split(self, name: str) -> bool:
        """Whether :meth:`parts` needs to know the shape of this tensor."""
        return any(pattern.fullmatch(name) for pattern in (_STACK, _FUSED, _NUMBERED)) or self._is_stack(name)

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The matrices inside a tensor of the model's names, in its own order; none where it stays whole.

        Raises:
            RequestError: a fused matrix cannot be divided as the config says.
        """
        if renamed := self.part_names(name):
            return [Part(renamed[0], name, ((0, shape[0]),))]
        if len(shape) == 3 and (_STACK.fullmatch(name) or self._is_stack(name)):
            return self._experts(name, shape)
        if len(shape) == 2 and (fused := _FUSED.fullmatch(name)) is not None:
            spans = self._spans(name, fused[2], shape)
            axis = 1 if fused[2] == "c_attn" else 0
            return [Part(f"{fused[1]}{piece}.weight", name, where, axis) for piece, where in spans.items()]
        return []

    def part_names(self, name: str) -> list[str]:
        """What a matrix of one expert is called here, where its family calls it otherwise."""
        numbered = _NUMBERED.fullmatch(name)
        return [f"{numbered[1]}.{_NUMBERED_NAMES[numbered[2]]}.weight"] if numbered else []

    @cached_property
    def places(self) -> dict[str, Place]:
        """Every tensor of the architecture, matrices apart and tied ones once; empty without an architecture."""
        found: dict[str, Place] = {}
        model = self.architecture
        for name, shape in model.shapes.items() if model else ():
            if model is None or name in model.tied:
                continue
            layer, in_scope = model.layers.get(name, OUTSIDE_LAYERS), name in model.matrices
            required = name in model.parameters
            for part in self.parts(name, shape) if self.may_split(name) else ():
                own = part.shape(shape)
                found[part.name] = Place(own, layer, in_scope, required, in_scope and _still_fused(part.name))
            if not (self.may_split(name) and self.parts(name, shape)):
                found[name] = Place(shape, layer, in_scope, required, in_scope and _still_fused(name))
        return found

    def place(self, name: str, shape: tuple[int, ...]) -> Place:
        """Where a tensor stands; by its name alone where there is no architecture."""
        if name in self.places:
            return self.places[name]
        found = None if self.architecture else _LAYER.search(name)
        in_scope = found is not None and len(shape) == 2 and name.endswith(".weight")
        return Place(shape, int(found[1]) if found else OUTSIDE_LAYERS, in_scope, True, in_scope and _still_fused(name))

    def tied(self, names: Iterable[str]) -> dict[str, str]:
        """The names that stand for other tensors: the output head of tied embeddings, for one.

        Args:
            names: of a checkpoint's tensors, by which it is told where there is no architecture.
        """
        if self.architecture is not None:
            return dict(self.architecture.tied)
        names = set(names)
        embedding = next((name for name in sorted(names) if _EMBEDDING.fullmatch(name)), None)
        if embedding is None or self._tied is False or (self._tied is None and _HEAD in names):
            return {}
        return {_HEAD: embedding}

    def _is_stack(self, name: str) -> bool:
        model = self.architecture
        return model is not None and name in model.matrices and len(model.shapes[name]) == 3

    def _experts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        stack = _STACK.fullmatch(name) or re.fullmatch(r"(.*)\.(\w+?)(?:\.weight)?", name)
        assert stack is not None
        gate_up = stack[2] == "gate_up_proj" and self._family not in _OTHER_STACKS and shape[2] == self._hidden
        pieces = ("gate_proj", "up_proj") if gate_up else (stack[2],)
        return [
            Part(f"{stack[1]}.{expert}.{piece}.weight", name, where, expert=expert)
            for expert in range(shape[0])
            for piece, where in _in_a_row(name, pieces, [1] * len(pieces), shape[1]).items()
        ]

    def _spans(self, name: str, fused: str, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Where each projection lies in a fused matrix; none where this family's order is not known."""
        family = self._family
        if fused == "gate_up_proj":
            return _in_a_row(name, ("gate_proj", "up_proj"), [1, 1], shape[0]) if family in _GATE_UP else {}
        if not self._heads:
            return {}
        if fused == "qkv_proj" and family == "phi3":
            return _in_a_row(name, _QKV, [self._heads, self._kv_heads, self._kv_heads], shape[0])
        if (fused, family) in (("c_attn", "gpt2"), ("Wqkv", "mpt")):
            return _in_a_row(name, _QKV, [1, 1, 1], shape[1] if fused == "c_attn" else shape[0])
        if fused == "query_key_value" and family in ("gpt_neox", "bloom", "persimmon"):
            return _by_head(name, self._heads, [1, 1, 1], shape[0])
        if fused == "query_key_value" and family == "falcon":
            return self._falcon(name, shape[0])
        return {}

    def _falcon(self, name: str, rows: int) -> dict[str, tuple[tuple[int, int], ...]]:
        if self._config.get("new_decoder_architecture"):
            groups = int(self._config.get("num_kv_heads") or self._heads)
            return _by_head(name, groups, [self._heads // groups, 1, 1], rows)
        if self._config.get("multi_query", True):
            return _in_a_row(name, _QKV, [self._heads, 1, 1], rows)
        return _by_head(name, self._heads, [1, 1, 1], rows)


class InLayout:
    """A checkpoint of the model's own names through its :class:`Layout`: every fused or stacked matrix apart.

    Attributes:
        path: the checkpoint's folder.
        layout: as given.
        stored: the checkpoint, fused matrices in one.

    Raises:
        RequestError: a fused matrix cannot be divided as the config says, or its parts are there by themselves too.
    """

    def __init__(self, source: TensorSource, layout: Layout) -> None:
        self.path, self.layout, self.stored = source.path, layout, source
        names = source.names()
        self._parts: dict[str, Part | None] = {}
        for name in names:
            parts = layout.parts(name, source.shape(name)) if layout.may_split(name) else []
            inside: dict[str, Part | None] = {part.name: part for part in parts} if parts else {name: None}
            if (again := next((each for each in inside if each in self._parts), None)) is not None:
                raise RequestError(f"{self.path}: {again} is here by itself and inside of a fused matrix or a stack")
            self._parts |= inside
        tied = layout.tied(names)
        for name, owner in tied.items():
            if owner in self._parts:
                self._parts.pop(name, None)
        self._alias = {name: owner for name, owner in tied.items() if owner in self._parts}

    def names(self) -> list[str]:
        return sorted(self._parts)

    def own_name(self, name: str) -> str:
        """The name that a tensor is listed by: the embedding's, of the output head of tied embeddings."""
        return self._alias.get(name, name)

    def holds(self, name: str) -> bool:
        """Whether a tensor can be read: it is listed, or is the output head of tied embeddings."""
        return name in self._parts or name in self._alias

    def place(self, name: str) -> Place:
        """Where a tensor stands in the model."""
        found = self.layout.place(self.own_name(name), self.shape(name))
        return replace(found, shape=self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        name, part = self._find(name)
        return self.stored.shape(name) if part is None else part.shape(self.stored.shape(part.whole))

    def dtype(self, name: str) -> torch.dtype:
        name, part = self._find(name)
        return self.stored.dtype(part.whole if part else name)

    def tensor(self, name: str) -> Tensor:
        name, part = self._find(name)
        return part.cut(self._matrix(part)) if part else self.stored.tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        name, part = self._find(name)
        if part is None:
            return self.stored.rows(name, start, stop)
        if part.expert is None and part.axis == 0 and len(part.spans) == 1:
            first, last = part.spans[0]  # so that no more than these rows are read
            return self.stored.rows(part.whole, first + start, min(first + stop, last))
        return part.cut(self._matrix(part), start, stop)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """L (m, r) and R (r, n) of an adapter's update W = W0 + L R; None where there are no factors."""
        name, part = self._find(name)
        found = getattr(self.stored, "factors", lambda name: None)(part.whole if part else name)
        if found is None or part is None:
            return found
        left, right = found
        return (part.cut(left), right) if part.axis == 0 else (left, part.cut(right))

    def _matrix(self, part: Part) -> Tensor:
        if part.expert is None:
            return self.stored.tensor(part.whole)
        return self.stored.rows(part.whole, part.expert, part.expert + 1)[0]

    def _find(self, name: str) -> tuple[str, Part | None]:
        name = self.own_name(name)
        if name not in self._parts:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return name, self._parts[name]


def absent(source: InLayout) -> list[str]:
    """The parameters of the model that a checkpoint lacks, by its layout's architecture; a layer of which all are
    missing is one entry, such as ``model.layers.3``.
    """
    required = {name: place for name, place in source.layout.places.items() if place.required}
    missing = {name: place.layer for name, place in required.items() if not source.holds(name)}
    layers = Counter(place.layer for place in required.values())
    whole = {layer for layer, count in Counter(missing.values()).items() if count == layers[layer] and layer >= 0}
    found = {_layer_name(name) if layer in whole else name: layer for name, layer in missing.items()}
    return sorted(found, key=lambda name: (found[name] == OUTSIDE_LAYERS, found[name], name))


def _layer_name(name: str) -> str:
    """The module of the decoder layer that a tensor is in: up to the first number of its name."""
    parts = name.split(".")
    return ".".join(parts[: 1 + next(place for place, part in enumerate(parts) if part.isdigit())])


def read_layout(folder: Path, cache: Path | None = None) -> Layout:
    """The layout of the model in a Hugging Face folder; nothing is split where it has no config.json.

    Args:
        folder: the folder.
        cache: see :func:`rlstride.trajectory.architecture.read_architecture`.

    Raises:
        RequestError: config.json is damaged, or transformers cannot build the model that it describes.
    """
    path = folder / CONFIG
    return Layout(read_json(path) if path.is_file() else {}, read_architecture(folder, cache))


def joined(tensors: Mapping[str, Tensor], names: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, Tensor]:
    """A model's tensors with its fused matrices and stacks in one again: the inverse of :class:`InLayout`.

    Args:
        tensors: each of the model's tensors, matrices apart; what is no part of ``names`` stays as it is.
        names: the shape of each tensor of the result, by the model's own name.
        layout: the model's.
    """
    found = dict(tensors)
    for name, shape in names.items():
        parts = layout.parts(name, shape) if layout.may_split(name) else []
        if not parts:
            continue
        pieces = [found.pop(part.name) for part in parts]
        whole = torch.empty(shape, dtype=reduce(torch.promote_types, (piece.dtype for piece in pieces)))
        for part, piece in zip(parts, pieces, strict=True):
            part.write(whole, piece)
        found[name] = whole
    return found


def _still_fused(name: str) -> bool:
    return _STILL_FUSED.fullmatch(name) is not None


def _in_a_row(
    name: str, pieces: tuple[str, ...], sizes: list[int], rows: int
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Each piece with where it starts and stops; the rows are divided in proportion to ``sizes``."""
    return _by_head(name, 1, sizes, rows, pieces)


def _by_head(
    name: str, heads: int, sizes: list[int], rows: int, pieces: tuple[str, ...] = _QKV
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Where the rows of each piece are: of each head, or group of heads, those of all pieces follow each other."""
    if rows % (heads * sum(sizes)):
        raise RequestError(f"{name}: its {rows} rows cannot be divided into {', '.join(pieces)} as config.json says")
    unit, found = rows // (heads * sum(sizes)), dict[str, tuple[tuple[int, int], ...]]()
    for place, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        starts = [unit * (head * sum(sizes) + sum(sizes[:place])) for head in range(heads)]
        found[piece] = tuple((start, start + unit * size) for start in starts)
    return found

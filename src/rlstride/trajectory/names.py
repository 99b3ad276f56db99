"""The model's own names in a checkpoint, whatever wraps the model, lies beside it, or calls its tensors otherwise."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.layout import Layout
from rlstride.trajectory.sources.quantised import refuse_quantised
from rlstride.trajectory.sources.source import TensorSource

# What torch.compile, FSDP, activation checkpointing and DistributedDataParallel put into names.
_WRAPPERS = re.compile(r"^module\.|(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Of Mixtral's files and those like them; transformers renames it before 5.23 only together with stacking the experts.
_MIXTRAL = (".block_sparse_moe.", ".mlp.")
# Where nothing tells what the model's names are: what precedes the usual ones.
_LAYER = re.compile(r"^(.*?)(?:model\.(?:language_model\.)?layers|transformer\.h|gpt_neox\.layers)\.\d+\.")
# Names of other libraries for the same tensors: what they are, and how to have the usual ones.
_FOREIGN = {
    r"(?:.*\.)?layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123])\.weight": (
        "torchtitan's or Meta's names, whose q and k rows are in another order: convert it with torchtitan's "
        "convert_to_hf.py, or save with last_save_in_hf"
    ),
    r"(?:.*\.)?decoder\.layers\.\d+\.self_attention\.linear_(?:qkv|proj)\.weight": (
        "Megatron's names, whose matrices are fused and cut in its own way: export it to Hugging Face format "
        "(Megatron Bridge, or verl's model_merger)"
    ),
    r"(?:.*\.)?language_model\.encoder\.layers\.\d+\.self_attention\.query_key_value\.weight": (
        "an older Megatron's names: export it to Hugging Face format with Megatron's own tools"
    ),
    r"blk\.\d+\.attn_q\.weight": "llama.cpp's names: give the model that the GGUF file was made from",
}


@dataclass(frozen=True)
class _Candidate:
    """One way to read a checkpoint's names: what is cut off their beginning, and what is put there instead."""

    cut: str
    put: str = ""
    fits: bool = False
    covered: int = 0

    @property
    def key(self) -> str:
        """What the user calls the model that is read so."""
        return self.cut.rstrip(".") or "(no prefix)"


class ModelTensors:
    """A checkpoint under the model's own names: those of transformers' state dict, tied tensors once.

    Marks of wrappers, prefixes such as ``model.model.`` and a vision model's, and transformers' own renamings are
    undone; tensors that are none of the model's, which transformers drops on load, are left out.

    Args:
        source: the checkpoint.
        layout: of the model.
        like: the base, whose tensors the checkpoint should have, where the layout has no architecture.
        key: what precedes the names of the model that is meant, where a checkpoint holds several, such as ``ema``.

    Attributes:
        path: the checkpoint's folder.
        layout: as given.
        extra: the checkpoint's names of tensors that are none of the model's.
        twice: tied names under which the checkpoint holds a tensor of its own, by the name of what they are tied to.

    Raises:
        RequestError: several models in the checkpoint fit, none has this key, one has an adapter in it, its weights are
            quantised, or it holds a tensor under two names.
    """

    def __init__(
        self, source: TensorSource, layout: Layout, *, like: TensorSource | None = None, key: str | None = None
    ) -> None:
        self.path = source.path
        self._source, self.layout = source, layout
        clean: dict[str, str] = {}
        for name in source.names():
            self._add(clean, _WRAPPERS.sub("", name), name)
        _refuse_adapter_inside(clean, self.path)
        self._expected = _expected(layout, like)
        self._known = {*self._expected, *layout.places, *(like.names() if like is not None else ())}
        self._own = self._chosen(clean, key)
        self.twice: dict[str, str] = {}
        for name, owner in layout.tied(self._own).items():
            if name in self._own and owner in self._own:
                self.twice[owner] = self._own.pop(name)
            elif name in self._own:  # the head alone was saved
                self._own[owner] = self._own.pop(name)
        own = {*self._own.values(), *self.twice.values()}
        self.extra = sorted(name for name in clean.values() if name not in own)
        refuse_quantised(source, self._weights(), self.extra)

    def names(self) -> list[str]:
        return sorted(self._own)

    def stored_name(self, name: str) -> str:
        """What the checkpoint itself calls a tensor.

        Raises:
            RequestError: it has no such tensor.
        """
        if name not in self._own:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return self._own[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self.stored_name(name))

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(self.stored_name(name))

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self.stored_name(name))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._source.rows(self.stored_name(name), start, stop)

    def tied_to(self, name: str) -> str | None:
        tied = self.layout.tied(self._own)
        return tied.get(name) or next((other for other, owner in tied.items() if owner == name), None)

    def is_transposed(self, name: str) -> bool | None:
        model = self.layout.architecture
        return None if model is None or name not in model.shapes else name in model.transposed

    def untied(self) -> list[str]:
        """Sentences about tied tensors that the checkpoint holds twice with different values; both are read."""
        return [
            f"{self.path}: {stored} differs from {self._own[owner]}, although config.json ties the two: set "
            "tie_word_embeddings to false in it if this model's head is its own, or delete the tensor that is not meant"
            for owner, stored in self.twice.items()
            if not torch.equal(self._source.tensor(stored), self._source.tensor(self._own[owner]))
        ]

    def hint(self) -> str | None:
        """Whose names these are, where they are none of transformers'."""
        names = self._source.names()
        return next((why for pattern, why in _FOREIGN.items() if any(re.fullmatch(pattern, n) for n in names)), None)

    def _weights(self) -> list[str]:
        """The checkpoint's names of the parameters; buffers may hold whole numbers."""
        model = self.layout.architecture
        if model is None:
            return [stored for name, stored in self._own.items() if name.endswith(("weight", "_proj"))]
        return [stored for name, stored in self._own.items() if name in model.parameters or name not in model.shapes]

    def _chosen(self, clean: Mapping[str, str], key: str | None) -> dict[str, str]:
        """The checkpoint's name of each of the model's tensors."""
        candidates = [self._judged(each, clean) for each in _candidates(clean, self.layout, self._expected)]
        if key is not None:
            found = [each for each in candidates if each.cut.rstrip(".") == key]
            if not found:
                known = ", ".join(each.key for each in candidates) or "none"
                raise RequestError(f"{self.path}: --model-key: no model is called {key!r} in it; it has {known}")
            return self._mapped(found[0], clean)
        fitting = [each for each in candidates if each.fits]
        if len(fitting) > 1:
            known = ", ".join(sorted(each.key for each in fitting))
            raise RequestError(
                f"{self.path}: several models in it fit the base: {known}; say with --model-key which one was trained"
            )
        best = max(candidates, key=lambda each: (each.fits, each.covered), default=_Candidate(""))
        return self._mapped(best, clean)

    def _judged(self, candidate: _Candidate, clean: Mapping[str, str]) -> _Candidate:
        try:
            found = self._mapped(candidate, clean)
            shapes = _apart(self.layout, {name: self._source.shape(stored) for name, stored in found.items()})
        except RequestError:  # a fused matrix of another shape, or one tensor under two names
            return candidate
        for name, owner in self.layout.tied(found).items():
            if owner not in shapes and name in shapes:
                shapes[owner] = shapes[name]
        covered = sum(shapes.get(name) == shape for name, shape in self._expected.items())
        return _Candidate(candidate.cut, candidate.put, covered == len(self._expected), covered)

    def _mapped(self, candidate: _Candidate, clean: Mapping[str, str]) -> dict[str, str]:
        model, found = self.layout.architecture, dict[str, str]()
        renamed: Callable[[str], str] | None = None
        for name in sorted(clean):
            if name.startswith(candidate.cut):
                own = candidate.put + name.removeprefix(candidate.cut)
                own = own if not candidate.put or self._is_models(own) else name.removeprefix(candidate.cut)
            elif candidate.put:
                own = name  # beside what was wrapped, such as the output head beside a vision model's decoder
            else:
                continue
            if model is not None and not self._is_models(own):
                renamed = renamed or model.renaming()  # seconds, which most checkpoints need not
                own = renamed(own)
            own = own if self._is_models(own) else own.replace(*_MIXTRAL)
            if self._is_models(own):
                self._add(found, own, clean[name])
        return found

    def _add(self, found: dict[str, str], name: str, stored: str) -> None:
        if name in found:
            raise RequestError(
                f"{self.path}: {found[name]} and {stored} are both here, and are the same tensor, {name}"
            )
        found[name] = stored

    def _is_models(self, name: str) -> bool:
        """Whether a tensor is one of the model's, perhaps as a part of a stack; any is, where nothing tells."""
        model = self.layout.architecture
        if model is not None and name in model.shapes:
            return True
        if not self._known:
            return True
        return name in self._known or any(part in self._known for part in self.layout.part_names(name))


def _expected(layout: Layout, like: TensorSource | None) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of this model must hold, matrices apart; empty where nothing tells."""
    if layout.architecture is not None:
        return {name: place.shape for name, place in layout.places.items() if place.required}
    return _apart(layout, {name: like.shape(name) for name in like.names()}) if like is not None else {}


def _apart(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices inside of tensors."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        parts = layout.parts(name, shape) if layout.may_split(name) else []
        found |= {part.name: part.shape(shape) for part in parts} if parts else {name: shape}
    return found


def _refuse_adapter_inside(names: Mapping[str, str], path: Path) -> None:
    adapted = next((name for name in sorted(names) if ".lora_A." in name or ".base_layer." in name), None)
    if adapted:
        raise RequestError(
            f"{path}: {adapted}: this is a model with an adapter in it; give the adapter's own folder "
            "(verl writes it as lora_adapter), with adapter_config.json, instead"
        )


def _candidates(clean: Mapping[str, str], layout: Layout, expected: Mapping[str, tuple[int, ...]]) -> list[_Candidate]:
    """The ways to read the names under which a layer's norm, or another plain tensor of a layer, has its own name."""
    anchor = next(
        (
            name
            for name in sorted(expected, key=lambda n: ("norm" not in n, n))
            if _tail(name) and not layout.may_split(name)
        ),
        None,
    )
    if anchor is None:
        return [_Candidate(min((found[1] for name in clean if (found := _LAYER.match(name))), key=len, default=""))]
    tail = _tail(anchor)
    outers = sorted({name.removesuffix(tail) for name in clean if name == tail or name.endswith(f".{tail}")})
    ways: dict[tuple[str, str], _Candidate] = {}
    for outer in outers:
        ends = [0, *(place + 1 for place, letter in enumerate(outer) if letter == ".")]
        cut = next((outer[:end] for end in ends if outer[end:] + tail == anchor), None)
        if cut is None and layout.architecture is not None:
            renamed = layout.architecture.renaming()
            cut = next((outer[:end] for end in ends if renamed(outer[end:] + tail) == anchor), None)
        if cut is not None:
            ways[cut, ""] = _Candidate(cut)
        else:
            ways[outer, anchor.removesuffix(tail)] = _Candidate(outer, anchor.removesuffix(tail))
    return list(ways.values()) or [_Candidate("")]


def _tail(name: str) -> str:
    """From the list of layers on: layers.0.input_layernorm.weight; empty for what is in no first layer."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[number - 1 :]) if number and parts[number] == "0" else ""

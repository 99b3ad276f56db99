"""A Hugging Face folder as a model: its config, its layout, and its tensors under the model's own names."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rlstride.trajectory.architecture import CONFIG
from rlstride.trajectory.layout import InLayout, absent, joined, read_layout
from rlstride.trajectory.names import ModelTensors
from rlstride.trajectory.sources.formats import ADAPTER
from rlstride.trajectory.sources.hf import HFFolder, read_json
from rlstride.trajectory.sources.quantised import refuse_quantised_config
from rlstride.trajectory.sources.recognise import Checkpoint


class ModelFolder:
    """The one reader of a model's folder: spectra, edits, extrapolation, training and scoring see the same tensors.

    Which files count is decided by :class:`HFFolder`, what the model consists of by config.json alone: an
    adapter_config.json, a generation_config.json or a dtype in it change nothing.

    Args:
        path: the folder.
        cache: see :func:`rlstride.trajectory.architecture.read_architecture`.

    Attributes:
        path: the folder.
        stored: its files.

    Raises:
        RequestError: a file is missing or damaged, the weights are quantised, or two sets of them contradict each
            other.
    """

    def __init__(self, path: str | Path, cache: Path | None = None) -> None:
        self.path = Path(path)
        if (self.path / CONFIG).is_file():
            refuse_quantised_config(read_json(self.path / CONFIG), self.path / CONFIG)
        self.stored = HFFolder(self.path)
        self.layout = read_layout(self.path, cache)

    @cached_property
    def tensors(self) -> ModelTensors:
        """The stored tensors, under the model's own names."""
        return ModelTensors(self.stored, self.layout)

    @cached_property
    def source(self) -> InLayout:
        """The tensors, fused matrices apart."""
        return InLayout(self.tensors, self.layout)

    def files(self) -> list[str]:
        """The names of the files that decide what the model computes: the weights' and config.json."""
        return [*([CONFIG] if (self.path / CONFIG).is_file() else []), *self.stored.files()]

    def step(self, checkpoint: Checkpoint, key: str | None = None) -> InLayout:
        """A checkpoint of this model, in its layout.

        Args:
            checkpoint: of any kind.
            key: see :class:`ModelTensors`.

        Raises:
            RequestError: the checkpoint cannot be read, or holds several models that fit.
        """
        stored = checkpoint.open(self.tensors)
        if checkpoint.format is ADAPTER:
            return InLayout(stored, self.layout)
        return InLayout(ModelTensors(stored, self.layout, like=self.tensors, key=key), self.layout)

    def missing(self) -> list[str]:
        """Sentences about parameters of the model that config.json describes and no file holds, or in another shape."""
        lacks = [f"no file holds {name}, which the model of its {CONFIG} has" for name in absent(self.source)]
        shapes = {name: self.source.shape(name) for name in self.layout.places if self.source.holds(name)}
        other = {name: shape for name, shape in shapes.items() if shape != self.layout.places[name].shape}
        misfit = [f"{n}: its shape is {s}, but {CONFIG} says {self.layout.places[n].shape}" for n, s in other.items()]
        found = [f"{self.path}: {what}" for what in (*lacks, *misfit)]
        if found and (hint := self.tensors.hint()):
            found[0] += f" ({hint})"
        return found

    def problems(self) -> list[str]:
        """What keeps the folder from being a whole model: :meth:`missing`, and tied tensors that differ."""
        return [*self.missing(), *self.tensors.untied()]

    def as_stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A model's tensors as this folder stores them: the inverse of :attr:`source`.

        What the folder holds beside the model, such as layers that transformers drops on load, is copied.

        Args:
            tensors: each of the model's tensors, matrices apart.
        """
        shapes = {name: self.tensors.shape(name) for name in self.tensors.names()}
        whole = joined(tensors, shapes, self.layout)
        found = {self.tensors.stored_name(name): tensor for name, tensor in whole.items()}
        for owner, stored in self.tensors.twice.items():
            found[stored] = whole[owner].clone()  # safetensors writes no tensor twice
        return found | {name: self.stored.tensor(name) for name in self.tensors.extra}


def first_difference(source: InLayout, base: InLayout) -> str | None:
    """A tensor in which a checkpoint differs from its base; None where every value is equal.

    Matrices of the last layers are looked at first: in a run that trained anything, one of them moved.
    """
    names = sorted(base.names(), key=lambda name: (not base.place(name).in_scope, -base.place(name).layer, name))
    for name in names:
        factors = source.factors(name)
        if factors is not None:
            if bool(factors[0].any()) and bool(factors[1].any()):
                return name
            continue
        after, before = source.tensor(name), base.tensor(name)
        dtype = torch.promote_types(after.dtype, before.dtype)
        if not torch.equal(after.to(dtype), before.to(dtype)):
            return name
    return None

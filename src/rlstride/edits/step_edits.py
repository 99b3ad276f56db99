"""Edited models of one kept step: rank-k updates (arXiv 2510.00553), and controls of equal norm.

W_k = W0 + scale * a * D_k per edited matrix, with D_k = sum_i s_i u_i v_i^T over the triplets that are kept and
a = |D|F / |D_k|F (rescale ``frobenius``) or 1 (``none``). Every tensor that is not edited stays bit-identical to the
base; only in the scope ``all`` those outside of the decoder layers' matrices take scale * D too: they are the step's at
a factor of 1. What D and the base are, as stored or rounded to bfloat16, is the edit's source
(:mod:`rlstride.edits.sources`).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rlstride.config.variants import AblationVariant, Scope, Source
from rlstride.edits.model_writer import EDITED_MODEL, model_card, write_model
from rlstride.edits.sources import dtype_of_source, kept_tensor, update_of
from rlstride.errors import RequestError
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_folder
from rlstride.progress import track
from rlstride.spectra.measures import frobenius
from rlstride.spectra.svd import TruncatedSVD, truncated_svd
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.compare import dtype_of_edits, wider
from rlstride.trajectory.scope import Weight, listed, scope_of
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Decomposition:
    """What all edits of one matrix are made from: |D|F and the leading triplets of D."""

    norm: float
    svd: TruncatedSVD

    def norm_of(self, rank: int) -> float:
        """|D_k|F as the truncation leaves it."""
        return frobenius(self.svd.s[:rank])


Decompositions = Mapping[tuple[str, Source], Decomposition]


class StepEdits:
    """The edited models of one kept step, which share one decomposition of its update.

    Attributes:
        trajectory: where base and step are read.
        step: the kept step.
        variants: the edits by name.

    Raises:
        RequestError: the step is the base, or was not kept.
    """

    def __init__(self, trajectory: Trajectory, step: int, variants: Sequence[AblationVariant]) -> None:
        if step == 0:
            raise RequestError(f"{trajectory.folder}: step 0 is the base, which has no update to edit")
        trajectory.record(step)
        self.trajectory, self.step = trajectory, step
        self.variants = {variant.name: variant for variant in variants}

    @cached_property
    def reader(self) -> UpdateReader:
        """Reads base and step."""
        return UpdateReader(self.trajectory)

    @cached_property
    def digest(self) -> str:
        """Of the files of base and step: large ones are read once for all edits."""
        return self.trajectory.digest(self.step)

    @cached_property
    def decompositions(self) -> dict[tuple[str, Source], Decomposition]:
        """|D|F and as many leading triplets as the edits need, by module and source; none of what no edit decomposes.

        Raises:
            RequestError: the base has no matrix inside a decoder layer.
            NotFiniteError: a checkpoint holds NaN or infinite entries.
        """
        sources = list(dict.fromkeys(variant.source for variant in self.variants.values()))
        keys = [(weight, source) for weight in self.reader.in_scope for source in sources]
        needed = {key: self._needed(*key) for key in keys}
        found: dict[tuple[str, Source], Decomposition] = {}
        for weight, source in track([key for key, rank in needed.items() if rank], "ablate: decompositions"):
            D = update_of(self.reader, weight, self.step, source)
            svd = truncated_svd(D, needed[weight, source])
            found[weight.module, source] = Decomposition(frobenius(D), svd)
        return found

    @cached_property
    def moved(self) -> set[str]:
        """The matrices in scope that differ from the base's, by name."""
        return self.reader.moved(self.step, self.reader.in_scope)

    @cached_property
    def moved_outside(self) -> set[str]:
        """The tensors out of scope that differ from the base's, by name."""
        return self.reader.moved(self.step, [weight for weight in self.reader.weights if not weight.in_scope])

    @cached_property
    def layers(self) -> int:
        """How many decoder layers the model has."""
        return 1 + max(weight.layer for weight in self.reader.in_scope)

    def forget(self) -> None:
        """Frees the decompositions; they are made again where they are asked for."""
        self.__dict__.pop("decompositions", None)

    def _needed(self, weight: Weight, source: Source) -> int:
        of_source = [variant for variant in self.variants.values() if variant.source == source]
        about = [variant for variant in of_source if in_scope(weight, variant.scope, self.layers)]
        return max((variant.needed(weight.shape) for variant in about), default=0)

    def model(self, variant: str) -> "EditedModel":
        """The tensors of one of the edited models, each made when it is asked for; one that is the base is told."""
        found = EditedModel(self, self.variants[variant])
        if not found.moves():
            print(f"{variant}: no matrix of its scope moved by step {self.step}: it is the base", file=sys.stderr)
        return found


class EditedModel:
    """A kept step's edited model, tensor by tensor, fused matrices apart."""

    def __init__(self, edits: StepEdits, variant: AblationVariant) -> None:
        self._edits, self._variant = edits, variant
        reader = edits.reader
        self._base = edits.trajectory.source(0)
        self._weights = {weight.name: weight for weight in reader.weights}
        self._edited = {weight.name for weight in reader.in_scope if in_scope(weight, variant.scope, edits.layers)}
        if not self._edited:
            raise RequestError(f"{variant.name}: no matrix of {edits.trajectory.base_folder} is in its scope")
        if variant.source == "rounding":
            _require_masters(edits, variant, reader)

    def names(self) -> list[str]:
        """The base's tensors, sorted."""
        return sorted(self._weights)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype: of an edited one float32 at least, unless it is the step's own."""
        weight, reader, step = self._weights[name], self._edits.reader, self._edits.step
        if name in self._edited:
            return _dtype(reader, weight, step, self._variant)
        if self._is_scaled(weight):
            return dtype_of_edits(reader.dtype(weight, 0), reader.dtype(weight, step))
        return dtype_of_source(reader, weight, self._whence(weight), self._variant.source)

    def tensor(self, name: str) -> Tensor:
        """A tensor; the output head of tied embeddings by its own name too. Errors are those of the reader."""
        weight, reader = self._weights.get(self._base.own_name(name)), self._edits.reader
        if weight is None:
            raise RequestError(f"{self._base.path}: there is no tensor {name!r}")
        if weight.name in self._edited:
            return edited(reader, weight, self._edits.step, self._variant, self._edits.decompositions)
        if self._is_scaled(weight):
            dtype, variant = self.dtype(weight.name), self._variant
            return _scaled(reader, weight, self._edits.step, variant.source, variant.scale, dtype)
        return kept_tensor(reader, weight, self._whence(weight), self._variant.source)

    def moves(self) -> bool:
        """Whether the step moved anything of what it edits."""
        others = self._edits.moved_outside if self._variant.scope == "all" else set()
        return bool(others) or not self._edited.isdisjoint(self._edits.moved)

    def scope_facts(self) -> dict[str, object]:
        """For a card: how much of the model is edited, and what else moved, which is the base's in this model."""
        edited = [weight for weight in self._weights.values() if weight.name in self._edited]
        share = sum(weight.size for weight in edited) / sum(weight.size for weight in self._weights.values())
        left = [w for w in self._weights.values() if w.name not in self._edited and self._whence(w) == 0]
        moved = [w.module for w in left if w.name in self._edits.moved | self._edits.moved_outside]
        facts: dict[str, object] = {"edited": f"{len(edited)} matrices, {100 * share:.1f} % of the parameters"}
        if fused := scope_of(edited).fused:
            facts["edited without taking apart"] = ", ".join(fused)
        return facts | {"moved outside of it": listed(moved) if moved else "nothing"}

    def _is_scaled(self, weight: Weight) -> bool:
        """Whether a tensor that is not edited has a factor of its own update, and so is neither base's nor step's."""
        return self._whence(weight) != 0 and self._variant.scale != 1 and weight.name in self._edits.moved_outside

    def _whence(self, weight: Weight) -> int:
        """The step of a tensor that is not edited."""
        return self._edits.step if self._variant.scope == "all" and not weight.in_scope else 0


def in_scope(weight: Weight, scope: Scope, layers: int) -> bool:
    """Whether a matrix inside a decoder layer is among those that a scope names.

    Args:
        weight: the matrix.
        scope: ``third_1`` is the first third of the layers, by their index.
        layers: how many there are.
    """
    if scope in ("attention", "mlp"):
        return ("attn" in weight.module or "attention" in weight.module) == (scope == "attention")
    if scope.startswith("third_"):
        return 1 + 3 * weight.layer // layers == int(scope[-1])
    return True


def write_ablations(
    trajectory: Trajectory, step: int, variants: Mapping[Path, AblationVariant], *, force: bool = False
) -> None:
    """Writes edited models of one kept step, each as an HF folder.

    Args:
        trajectory: a finished trajectory.
        step: the kept step whose update is edited.
        variants: the edit for each folder to write.
        force: replace folders that an earlier call wrote.

    Raises:
        RequestError: the step was not kept, or a folder exists.
        WorkError: a checkpoint holds NaN or infinite entries.
    """
    for out in variants:
        require_free_folder(out, EDITED_MODEL, force=force)
    edits = StepEdits(trajectory, step, list(variants.values()))
    if not edits.moved and not edits.moved_outside:
        raise RequestError(
            f"{trajectory.model_folder(step)}: every tensor is equal to the base's, so there is no update to edit"
        )
    with ledger_entry(trajectory.folder.parent / "ledger", "ablate", step=step, variants=list(edits.variants)) as found:
        ties = [module for (module, _), decomposition in edits.decompositions.items() if decomposition.svd.near_tie]
        found["near_ties"] = list(dict.fromkeys(ties))
        for out, variant in track(variants.items(), "ablate: models"):
            model = edits.model(variant.name)
            tensors = {name: model.tensor(name) for name in model.names()}
            card = model_card(trajectory, _facts(step, variant) | model.scope_facts(), [step])
            write_model(out, trajectory.base_folder, tensors, card, trajectory.tokenizer_folder)


def edited(
    reader: UpdateReader, weight: Weight, step: int, variant: AblationVariant, decompositions: Decompositions
) -> Tensor:
    """One matrix with its edited update, in float32 at least; the step's own matrix in the wider dtype of the two.

    A variant that keeps the whole update at its own norm needs no decomposition.
    """
    dtype, kept = _dtype(reader, weight, step, variant), variant.kept(weight.shape)
    if _is_the_step(variant):  # Wt itself, which W0 + (Wt - W0) is only up to rounding
        return kept_tensor(reader, weight, step, variant.source).to(dtype)
    if kept is None:
        factor = variant.scale * _norm_factor(reader, weight, step, variant, decompositions)
        return _scaled(reader, weight, step, variant.source, factor, dtype)
    decomposition = _chosen(decompositions[weight.module, variant.source], variant, kept)
    if variant.directions.startswith("random"):
        seed = reader.trajectory.seed_for(step, weight.module, variant.control)
        decomposition = _with_random_directions(decomposition, variant, seed)
    update = rank_k_update(decomposition, kept, rescale=variant.rescale == "frobenius")
    return (kept_tensor(reader, weight, 0, variant.source).double() + variant.scale * update).to(dtype)


def _scaled(
    reader: UpdateReader, weight: Weight, step: int, source: Source, factor: float, dtype: torch.dtype
) -> Tensor:
    """W0 + factor * D of the whole update, summed in float64."""
    base = kept_tensor(reader, weight, 0, source)
    if factor == 0:
        return base.to(dtype)
    return (base.double() + factor * update_of(reader, weight, step, source).double()).to(dtype)


def _norm_factor(
    reader: UpdateReader, weight: Weight, step: int, variant: AblationVariant, decompositions: Decompositions
) -> float:
    """What gives the whole update the norm that its name says; 1 where there is nothing to scale."""
    if variant.norm_of is not None:
        decomposition = decompositions[weight.module, variant.source]
        return decomposition.norm_of(variant.norm_of) / decomposition.norm if decomposition.norm > 0 else 1.0
    if variant.source == "rounding" and variant.rescale == "frobenius":
        norm = frobenius(update_of(reader, weight, step, "rounding"))
        return frobenius(reader.update(weight, step)) / norm if norm > 0 else 1.0
    return 1.0


def _is_the_step(variant: AblationVariant) -> bool:
    whole = variant.rank is None and variant.percent is None and variant.norm_of is None
    return whole and variant.scale == 1 and variant.source != "rounding"


def _dtype(reader: UpdateReader, weight: Weight, step: int, variant: AblationVariant) -> torch.dtype:
    dtypes = reader.dtype(weight, 0), reader.dtype(weight, step)
    itself = _is_the_step(variant) and variant.source == "stored"
    return wider(*dtypes) if itself else dtype_of_edits(*dtypes)


def _require_masters(edits: StepEdits, variant: AblationVariant, reader: UpdateReader) -> None:
    """Refuses a step without an update that rounding could take anything from."""
    narrow = next((weight for weight in reader.in_scope if reader.dtype(weight, edits.step).itemsize < 4), None)
    if narrow is not None:
        place, dtype = edits.trajectory.model_folder(edits.step), str(reader.dtype(narrow, edits.step))
        raise RequestError(
            f"{variant.name}: {place} holds {narrow.name} in {dtype.removeprefix('torch.')}: "
            "what rounding took from it is not in the files; keep float32 masters"
        )


def rank_k_update(decomposition: Decomposition, rank: int, *, rescale: bool) -> Tensor:
    """a * D_k in float64 (m, n); a = |D|F / |D_k|F where ``rescale``, else 1. Zero where D = 0."""
    u, s, v = (part.double() for part in (decomposition.svd.u, decomposition.svd.s, decomposition.svd.v))
    u, s, v = u[:, :rank], s[:rank], v[:, :rank]
    kept = float(torch.linalg.vector_norm(s))  # |D_k|F
    a = decomposition.norm / kept if rescale and kept > 0 else 1.0
    update: Tensor = (u * (a * s)) @ v.mT
    return update


def _chosen(decomposition: Decomposition, variant: AblationVariant, kept: int) -> Decomposition:
    """With the triplets that a variant keeps in the first places; with none where it starts beyond the last."""
    svd = decomposition.svd
    first = len(svd.s) - kept if variant.directions == "bottom" else variant.first - 1
    places = slice(first, first + kept)
    parts = TruncatedSVD(
        svd.u[:, places], svd.s[places], svd.v[:, places], svd.near_ties[places], svd.residuals[places], spectrum=None
    )
    return Decomposition(decomposition.norm, parts)


def _with_random_directions(decomposition: Decomposition, variant: AblationVariant, seed: int) -> Decomposition:
    """The same singular values on random orthonormal directions: a control of equal norm and equal spectrum."""
    svd = decomposition.svd
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(side, len(svd.s), generator=generator, dtype=torch.float64)).Q
        for side in (svd.u.shape[0], svd.v.shape[0])
    )
    u = svd.u if variant.directions == "random_v" else u
    v = svd.v if variant.directions == "random_u" else v
    untied, exact = torch.zeros_like(svd.s, dtype=torch.bool), torch.zeros_like(svd.s)
    return Decomposition(decomposition.norm, TruncatedSVD(u, svd.s, v, untied, exact, spectrum=None))


_SCOPES = {
    "linear": "2-D weights inside the decoder layers; every other tensor is the base's",
    "attention": "2-D weights of the attention inside the decoder layers; every other tensor is the base's",
    "mlp": "2-D weights inside the decoder layers but for the attention's; every other tensor is the base's",
    "all": "2-D weights inside the decoder layers; every other tensor is the step's, at the same factor",
}
_SOURCES = {
    "stored": "Wt - W0 as stored",
    "bf16": "bf16(Wt) - bf16(W0), on the base rounded to bfloat16",
    "rounding": "what rounding both sides to bfloat16 adds, without its part along the update",
}
_DIRECTIONS = {
    "true": "u_i, v_i of the update",
    "random": "random: a control",
    "random_u": "random u_i, v_i of the update: a control",
    "random_v": "u_i of the update, random v_i: a control",
    "bottom": "u_i, v_i of the update's smallest singular values: a control",
}


def _facts(step: int, variant: AblationVariant) -> dict[str, object]:
    count = f"{variant.percent:g} %" if variant.percent is not None else variant.rank
    whole = count is None
    facts: dict[str, object] = {
        "method": "the whole update" if whole else f"rank-{count} update",
        "step": step,
        "scope": _SCOPES.get(variant.scope, f"2-D weights of the layers' {variant.scope.replace('_', ' ')} of three"),
        "scale": variant.scale,
    }
    if variant.source != "stored":
        facts["update"] = _SOURCES[variant.source]
    if variant.norm_of is not None:
        facts["norm"] = f"of the rank-{variant.norm_of} part as the truncation leaves it"
    if variant.source == "rounding":
        facts["norm"] = "|D|F, the full update's" if variant.rescale == "frobenius" else "its own"
    if not whole:
        facts["norm"] = "|D|F, the full update's" if variant.rescale == "frobenius" else "as the truncation leaves it"
        facts["directions"] = _DIRECTIONS[variant.directions]
        facts["first triplet"] = variant.first
    return facts

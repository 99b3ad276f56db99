"""Edited models of one kept step: rank-k updates (arXiv 2510.00553), and controls of equal norm.

W_k = W0 + scale * a * D_k per edited matrix, with D_k = sum_i s_i u_i v_i^T over the triplets that are kept and
a = |D|F / |D_k|F (rescale ``frobenius``) or 1 (``none``). Every tensor that is not edited stays bit-identical to the
base; only in the scope ``all`` those outside of the decoder layers' matrices are the step's.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rlstride.config.variants import AblationVariant, Scope
from rlstride.edits.model_writer import EDITED_MODEL, model_card, write_model
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
    def decompositions(self) -> dict[str, Decomposition]:
        """|D|F and as many leading triplets as the edits need, by module; none of what no edit decomposes.

        Raises:
            RequestError: the base has no matrix inside a decoder layer.
            NotFiniteError: a checkpoint holds NaN or infinite entries.
        """
        needed = {weight: self._needed(weight) for weight in self.reader.in_scope}
        found: dict[str, Decomposition] = {}
        for weight in track([weight for weight, rank in needed.items() if rank], "ablate: decompositions"):
            D = self.reader.update(weight, self.step)
            found[weight.module] = Decomposition(frobenius(D), truncated_svd(D, needed[weight]))
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

    def _needed(self, weight: Weight) -> int:
        about = [variant for variant in self.variants.values() if in_scope(weight, variant.scope, self.layers)]
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

    def names(self) -> list[str]:
        """The base's tensors, sorted."""
        return sorted(self._weights)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype: of an edited one float32 at least, unless it is the step's own."""
        weight, reader = self._weights[name], self._edits.reader
        if name not in self._edited:
            return reader.dtype(weight, self._whence(weight))
        return _dtype(reader, weight, self._edits.step, self._variant)

    def tensor(self, name: str) -> Tensor:
        """A tensor; the output head of tied embeddings by its own name too. Errors are those of the reader."""
        weight, reader = self._weights.get(self._base.own_name(name)), self._edits.reader
        if weight is None:
            raise RequestError(f"{self._base.path}: there is no tensor {name!r}")
        if weight.name not in self._edited:
            return reader.stored(weight, self._whence(weight))
        return edited(reader, weight, self._edits.step, self._variant, self._edits.decompositions)

    def moves(self) -> bool:
        """Whether anything of it is not the base's."""
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
        found["near_ties"] = [module for module, d in edits.decompositions.items() if d.svd.near_tie]
        for out, variant in track(variants.items(), "ablate: models"):
            model = edits.model(variant.name)
            tensors = {name: model.tensor(name) for name in model.names()}
            card = model_card(trajectory, _facts(step, variant) | model.scope_facts(), [step])
            write_model(out, trajectory.base_folder, tensors, card, trajectory.tokenizer_folder)


def edited(
    reader: UpdateReader,
    weight: Weight,
    step: int,
    variant: AblationVariant,
    decompositions: Mapping[str, Decomposition],
) -> Tensor:
    """One matrix with its edited update, in float32 at least; the step's own matrix in the wider dtype of the two.

    A variant that keeps the whole update needs no decomposition.
    """
    base, dtype = reader.stored(weight, 0), _dtype(reader, weight, step, variant)
    kept = variant.kept(weight.shape)
    if kept is None:
        if variant.scale == 1:  # Wt itself, which W0 + (Wt - W0) is only up to rounding
            return reader.stored(weight, step).to(dtype)
        update = reader.update(weight, step)
        return (base.double() + variant.scale * update.double()).to(dtype)
    decomposition = _chosen(decompositions[weight.module], variant, kept)
    if variant.directions.startswith("random"):
        seed = reader.trajectory.seed_for(step, weight.module, variant.control)
        decomposition = _with_random_directions(decomposition, variant, seed)
    update = rank_k_update(decomposition, kept, rescale=variant.rescale == "frobenius")
    return (base.double() + variant.scale * update).to(dtype)


def _dtype(reader: UpdateReader, weight: Weight, step: int, variant: AblationVariant) -> torch.dtype:
    dtypes = reader.dtype(weight, 0), reader.dtype(weight, step)
    itself = variant.kept(weight.shape) is None and variant.scale == 1
    return wider(*dtypes) if itself else dtype_of_edits(*dtypes)


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
    "all": "2-D weights inside the decoder layers; every other tensor is the step's",
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
    if not whole:
        facts["norm"] = "|D|F, the full update's" if variant.rescale == "frobenius" else "as the truncation leaves it"
        facts["directions"] = _DIRECTIONS[variant.directions]
        facts["first triplet"] = variant.first
    return facts

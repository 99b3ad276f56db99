"""Edited models of one kept step: rank-k updates (arXiv 2510.00553), and controls of equal norm.

W_k = W0 + scale * a * D_k per in-scope matrix, with D_k = sum_{i<=k} s_i u_i v_i^T and a = |D|F / |D_k|F (rescale
``frobenius``) or 1 (``none``). Everything out of scope stays bit-identical to the base. Where the step is stored in a
wider dtype than the base, edited matrices are too: float32 shards of a bfloat16 base hold updates that bfloat16 would
round away.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.progress import track
from rlstride.spectra.measures import frobenius
from rlstride.spectra.scope import Weight
from rlstride.spectra.svd import TruncatedSVD, truncated_svd
from rlstride.spectra.updates import UpdateReader
from rlstride.study.variants import AblationVariant
from rlstride.surgery.models import base_tensors, check_replaceable, model_card, write_model
from rlstride.tracking.ledger import ledger_entry
from rlstride.trajectory.compare import wider
from rlstride.trajectory.store import Trajectory


@dataclass(frozen=True)
class Decomposition:
    """What all edits of one matrix are made from: |D|F and the leading triplets of D."""

    norm: float
    svd: TruncatedSVD


def write_ablations(trajectory: Trajectory, step: int, variants: Mapping[Path, AblationVariant]) -> None:
    """Writes edited models of one kept step, each as an HF folder.

    Args:
        trajectory: a finished trajectory.
        step: the kept step whose update is edited.
        variants: the edit for each folder to write.

    Raises:
        RequestError: the step was not kept, or a folder holds something else.
        WorkError: a checkpoint holds NaN or infinite entries.
    """
    for out in variants:
        check_replaceable(out.resolve())
    if step == 0:
        raise RequestError(f"{trajectory.folder}: step 0 is the base, which has no update to edit")
    trajectory.record(step)
    names = [variant.name for variant in variants.values()]
    with ledger_entry(trajectory.folder.parent / "ledger", "ablate", step=step, variants=names) as found:
        reader = UpdateReader(trajectory)
        decompositions = decompose(reader, step, max((variant.rank or 0 for variant in variants.values()), default=0))
        found["near_ties"] = [module for module, d in decompositions.items() if d.svd.near_tie]
        for out, variant in track(variants.items(), "ablate: models"):
            tensors = base_tensors(reader)
            for weight in reader.in_scope:
                tensors[weight.name] = edited(reader, weight, step, variant, decompositions)
            write_model(out, trajectory.base_folder, tensors, model_card(trajectory, _facts(step, variant)))


def decompose(reader: UpdateReader, step: int, rank: int) -> dict[str, Decomposition]:
    """|D|F and the ``rank`` leading triplets of each in-scope update, by module; nothing where ``rank`` is 0."""
    decompositions: dict[str, Decomposition] = {}
    for weight in track(reader.in_scope if rank else [], "ablate: decompositions"):
        D = reader.update(weight, step)
        decompositions[weight.module] = Decomposition(frobenius(D), truncated_svd(D, rank))
    return decompositions


def edited(
    reader: UpdateReader,
    weight: Weight,
    step: int,
    variant: AblationVariant,
    decompositions: Mapping[str, Decomposition],
) -> Tensor:
    """One matrix with its edited update, in the wider of the base's and the step's dtype.

    A variant without a rank needs no decomposition.
    """
    base = reader.stored(weight, 0)
    dtype = wider(base.dtype, reader.dtype(weight, step))
    if variant.rank is None:
        if variant.scale == 1:  # Wt itself, which W0 + (Wt - W0) is only up to rounding
            return reader.stored(weight, step).to(dtype)
        update = reader.update(weight, step)
        return (base.double() + variant.scale * update.double()).to(dtype)
    decomposition = decompositions[weight.module]
    if variant.directions == "random":
        seed = _seed(reader.trajectory, weight.module, step, variant.name)
        decomposition = _with_random_directions(decomposition, variant.rank, seed)
    update = rank_k_update(decomposition, variant.rank, rescale=variant.rescale == "frobenius")
    return (base.double() + variant.scale * update).to(dtype)


def rank_k_update(decomposition: Decomposition, rank: int, *, rescale: bool) -> Tensor:
    """a * D_k in float64 (m, n); a = |D|F / |D_k|F where ``rescale``, else 1. Zero where D = 0."""
    u, s, v = (part.double() for part in (decomposition.svd.u, decomposition.svd.s, decomposition.svd.v))
    u, s, v = u[:, :rank], s[:rank], v[:, :rank]
    kept = float(torch.linalg.vector_norm(s))  # |D_k|F
    a = decomposition.norm / kept if rescale and kept > 0 else 1.0
    update: Tensor = (u * (a * s)) @ v.mT
    return update


def _with_random_directions(decomposition: Decomposition, rank: int, seed: int) -> Decomposition:
    """The same singular values on random orthonormal directions: a control of equal norm and equal spectrum."""
    svd = decomposition.svd
    s = svd.s[:rank]
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(side, len(s), generator=generator, dtype=torch.float64)).Q
        for side in (svd.u.shape[0], svd.v.shape[0])
    )
    untied, exact = torch.zeros_like(s, dtype=torch.bool), torch.zeros_like(s)
    return Decomposition(decomposition.norm, TruncatedSVD(u, s, v, untied, exact, spectrum=None))


def _seed(trajectory: Trajectory, module: str, step: int, variant: str) -> int:
    manifest = trajectory.manifest
    text = f"{manifest.base.name}/{manifest.algorithm}/{manifest.seed}/{step}/{module}/{variant}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _facts(step: int, variant: AblationVariant) -> dict[str, object]:
    facts: dict[str, object] = {
        "method": "the whole in-scope update" if variant.rank is None else f"rank-{variant.rank} update",
        "step": step,
        "scope": "2-D weights inside the decoder layers; every other tensor is the base's",
        "scale": variant.scale,
    }
    if variant.rank is not None:
        facts["norm"] = "|D|F, the full update's" if variant.rescale == "frobenius" else "as the truncation leaves it"
        facts["directions"] = "u_i, v_i of the update" if variant.directions == "true" else "random: a control"
    return facts

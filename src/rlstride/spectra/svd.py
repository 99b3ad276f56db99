"""Leading singular triplets of a matrix, by the cheapest method that meets a bar, with the residual that shows it.

The bar: s_i within 1e-4 of the true one, |cos| > 0.999 for vectors whose s_i stands 5 % apart from its neighbours. A
residual r_i <= 4e-3 s_i is enough where it does, as D D^T u_i - s_i^2 u_i is then s_i r_i long: the sine to the true
vector is at most r_i / (2 gap), the relative error of s_i at most r_i^2 / (4 s_i gap) (Parlett, The Symmetric
Eigenvalue Problem, theorems 11.7.1 and 11.7.2). Of near-ties no residual tells as much: their values are within 1e-4 on
updates and on noise, but in a long row of values that are almost equal up to 6e-4 was seen.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlstride.spectra.krylov import leading_subspace

EXACT_SIDE = 64  # up to this smaller side LAPACK's SVD is the fastest
GRAM_SIDE = 256  # up to this one a Gram matrix in float64 costs little more than Krylov, and gives the whole spectrum
NEAR_TIE = 1.05  # below this s_i / s_(i+1) direction i is ill-defined
RESIDUAL = 4e-3  # of s_i
_NOISE = 2e-6  # of s_1: below it float32 tells no value from zero
_STOP = 0.75  # of it: where the iteration stops, whose own estimate of the residual is a little low


@dataclass(frozen=True)
class TruncatedSVD:
    """D ~ u diag(s) v^T.

    Attributes:
        u: left singular vectors (m, k), columns of unit length.
        s: singular values (k,), descending.
        v: right singular vectors (n, k), columns of unit length.
        near_ties: s_i / s_(i+1) < 1.05 (k,), so that direction i is ill-defined; False where s_(i+1) = 0.
        residuals: the larger of |D v_i - s_i u_i| and |D^T u_i - s_i v_i| (k,), in D's unit.
        spectrum: all singular values where the method gives them, zeros perhaps left off, else None.
        subspace: singular vectors of the smaller side (min(m, n), more than k), from which the decomposition of a
            similar matrix starts; None where the method has none.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    near_ties: Tensor
    residuals: Tensor
    spectrum: Tensor | None
    subspace: Tensor | None = None

    @property
    def near_tie(self) -> bool:
        """Whether u1 and v1 are ill-defined."""
        return bool(self.near_ties[0])


def truncated_svd(D: Tensor, k: int, start: TruncatedSVD | None = None) -> TruncatedSVD:
    """The k leading singular triplets of D in its own precision; k above min(m, n) is cut to it.

    float64 goes to LAPACK's SVD. So does float32 with a smaller side of up to 64, or where many triplets are wanted:
    over a quarter, or a twentieth above a side of 256. Up to that side the eigenvectors of the Gram matrix in float64
    are taken, whose squared condition number is then harmless; above, block Krylov iteration with full
    reorthogonalisation, in bfloat16 where that is faster, a Rayleigh-Ritz step in float32, and its residuals. What
    misses the bar so (values far below s1) is left to LAPACK.

    Args:
        D: a finite matrix (m, n).
        k: triplets wanted, from 1.
        start: triplets of a similar matrix of the same shape, such as the previous step's: fewer iterations.
    """
    k, short = min(k, *D.shape), min(D.shape)
    found = None
    part = 4 if short <= GRAM_SIDE else 20  # of the triplets: of more, LAPACK has all in less time
    if D.dtype == torch.float32 and short > EXACT_SIDE and part * k <= short:
        tall = D if D.shape[0] >= D.shape[1] else D.mT
        if short > GRAM_SIDE:
            found = _by_krylov(tall, k, None if start is None else start.subspace)
        else:
            found = _by_gram(tall, k)
        if found is not None and tall is not D:
            found = replace(found, u=found.v, v=found.u)
    return _exact(D, k) if found is None else found


def svd_of_product(left: Tensor, right: Tensor, k: int) -> TruncatedSVD:
    """The k leading singular triplets of D = left right, which is not formed: by QR of the factors, in float64.

    Args:
        left: (m, r).
        right: (r, n).
        k: triplets wanted, from 1; above r the values are 0.
    """
    L, Rt, k = left.double(), right.double().mT, min(k, len(left), right.shape[1])
    Q, A = torch.linalg.qr(L)  # (m, q), (q, r), q = min(m, r)
    P, B = torch.linalg.qr(Rt)  # (n, p), (p, r)
    X, S, Yh = torch.linalg.svd(A @ B.mT, full_matrices=False)
    u, v = (_completed(vectors, k)[:, :k] for vectors in (Q @ X, P @ Yh.mT))
    spectrum = torch.cat([S, S.new_zeros(max(0, k - len(S)))])
    s = spectrum[:k]
    ahead, back = L @ (Rt.mT @ v) - u * s, Rt @ (L.mT @ u) - v * s
    residuals = torch.maximum(*(torch.linalg.vector_norm(rest, dim=0) for rest in (ahead, back)))
    u, s, v, residuals, spectrum = (part.to(left.dtype).contiguous() for part in (u, s, v, residuals, spectrum))
    return TruncatedSVD(u, s, v, _near_ties(spectrum, k), residuals, spectrum)


def _completed(vectors: Tensor, count: int) -> Tensor:
    """Orthonormal columns, and others at right angles to them, ``count`` in all at least."""
    if vectors.shape[1] >= count:
        return vectors
    more = torch.randn(len(vectors), count - vectors.shape[1], generator=torch.Generator().manual_seed(0))
    whole = torch.linalg.qr(torch.cat([vectors, more.to(vectors)], dim=1)).Q
    return torch.cat([vectors, whole[:, vectors.shape[1] :]], dim=1)


def _exact(D: Tensor, k: int) -> TruncatedSVD:
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)  # (m, r), (r,), (r, n)
    u, s, v = U[:, :k].contiguous(), S[:k].clone(), Vh[:k].mT.contiguous()
    return TruncatedSVD(u, s, v, _near_ties(S, k), _residuals(D, u, s, v), S)


def _by_gram(A: Tensor, k: int) -> TruncatedSVD | None:
    """Of a tall A (m, n), float32; None where the k-th value is so far below the first that u loses orthogonality."""
    A64 = A.double()
    squares, vectors = torch.linalg.eigh(A64.mT @ A64)  # (n,), (n, n), ascending
    v = vectors[:, -k:].flip(1)
    w = A64 @ v  # (m, k)
    s = torch.linalg.vector_norm(w, dim=0)
    u = w / s
    # Where s_k = 0 this compares with NaN.
    if not float((u.mT @ u - torch.eye(k, dtype=u.dtype, device=u.device)).abs().max()) < 1e-6:
        return None
    residuals = torch.linalg.vector_norm(A64.mT @ u - v * s, dim=0)
    if bool((residuals > RESIDUAL * s).any()):
        return None
    S = squares.flip(0).clamp(min=0).sqrt()
    u, s, v, residuals, S = (part.to(A.dtype).contiguous() for part in (u, s, v, residuals, S))
    return TruncatedSVD(u, s, v, _near_ties(S, k), residuals, S)


def _by_krylov(A: Tensor, k: int, guess: Tensor | None) -> TruncatedSVD | None:
    """Of a tall A (m, n); None where it does not converge.

    First with products in bfloat16, where these are the faster ones: the residuals in A's own precision tell whether
    that was enough, and a power step or two in that precision takes away what rounding has added.
    """
    narrow = _fast_dtype(A)
    for dtype in (narrow, A.dtype) if narrow else (A.dtype,):
        rows, converged = leading_subspace(A.to(dtype), k, guess, residual=_STOP * RESIDUAL, near_tie=NEAR_TIE)
        found = _ritz_triplets(A, k, rows) if converged else None
        if found is not None:
            return found
        guess = rows.mT
    return None


def _fast_dtype(A: Tensor) -> torch.dtype | None:
    """bfloat16 where the processor multiplies it faster than A's float32; None elsewhere."""
    if A.dtype != torch.float32:
        return None
    if A.is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else None


def _ritz_triplets(A: Tensor, k: int, rows: Tensor) -> TruncatedSVD | None:
    """The triplets of A within a span of orthonormal rows (width, n), or in what some power steps make of it.

    None where they miss the bar and a step does not halve the residuals.
    """
    before = math.inf
    while True:
        U, R = torch.linalg.qr((rows @ A.mT).mT)  # no squares: small values keep their digits
        P, S, Qh = torch.linalg.svd(R)
        U, rows = U @ P, Qh @ rows
        back = U.mT @ A  # (width, n)
        residuals = _row_norms(back[:k] - S[:k, None] * rows[:k])  # A v = u s by construction
        # What is zero but for rounding has no direction to be exact about.
        bar = torch.where(S[:k] > _NOISE * S[0], RESIDUAL * S[:k], _NOISE * S[0])
        over = float((residuals / bar).max()) if float(bar.min()) > 0 else 0.0 if float(S[0]) == 0 else math.nan
        if over <= 1:
            u, s, v = U[:, :k].contiguous(), S[:k].clone(), rows[:k].mT.contiguous()
            return TruncatedSVD(u, s, v, _near_ties(S, k), residuals, None, rows.mT)
        if not over <= before / 2 or over == math.inf:
            return None
        rows, before = torch.linalg.qr(back.mT).Q.mT, over


def _residuals(D: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    right, left = v.mT @ D.mT - (u * s).mT, u.mT @ D - (v * s).mT  # (k, m), (k, n)
    return torch.maximum(_row_norms(right), _row_norms(left))


def _row_norms(rows: Tensor) -> Tensor:
    """Through float64: squares of small entries vanish in float32."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.to(rows.dtype)


def _near_ties(S: Tensor, k: int) -> Tensor:
    """s_i / s_(i+1) < 1.05 for the first k of S; False for the last of all, and before what is zero up to rounding."""
    following = torch.cat([S[1 : k + 1], S.new_zeros(max(0, k + 1 - len(S)))])
    return (S[:k] < NEAR_TIE * following) & (following > 16 * torch.finfo(S.dtype).eps * S[0])

"""Leading singular triplets of a matrix: exact where that is cheap, else randomised with a residual check."""

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_SIDE = 512  # up to this smaller side the exact SVD takes a fraction of a second
NEAR_TIE = 1.05  # below this s1/s2 the leading direction is ill-defined
_RESIDUAL = 1e-4  # of s1: enough for |cos| > 0.999 wherever s1/s2 >= NEAR_TIE
_MAX_PASSES = 60
_OVERSAMPLING = 16


@dataclass(frozen=True)
class TruncatedSVD:
    """D ~ u diag(s) v^T.

    Attributes:
        u: left singular vectors (m, k), columns of unit length.
        s: singular values (k,), descending.
        v: right singular vectors (n, k), columns of unit length.
        near_tie: s1 / s2 < 1.05, so that u1 and v1 are ill-defined; False where s2 = 0.
        spectrum: all min(m, n) singular values where the exact SVD was taken, else None.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    near_tie: bool
    spectrum: Tensor | None


def truncated_svd(D: Tensor, k: int) -> TruncatedSVD:
    """The k leading singular triplets of D in its own precision; k above min(m, n) is cut to it.

    Matrices with a smaller side above 512 go through randomised subspace iteration (Halko, Martinsson and Tropp 2011,
    algorithm 4.4), which stops when |D v_i - s_i u_i| <= 1e-4 s1 for each i <= k. One that has not converged after 60
    passes (a flat spectrum) is decomposed exactly.

    Args:
        D: a finite matrix (m, n).
        k: triplets wanted, from 1.
    """
    k = min(k, *D.shape)
    found = None
    if min(D.shape) > EXACT_SIDE and 4 * (k + _OVERSAMPLING) < min(D.shape):
        found = _subspace_iteration(D, k)
    return found if found is not None else _exact(D, k)


def _exact(D: Tensor, k: int) -> TruncatedSVD:
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)  # (m, r), (r,), (r, n)
    return TruncatedSVD(U[:, :k].contiguous(), S[:k].clone(), Vh[:k].mT.contiguous(), _is_near_tie(S), S)


def _subspace_iteration(D: Tensor, k: int) -> TruncatedSVD | None:
    width = max(2 * k, k + _OVERSAMPLING)
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn(D.shape[1], width, generator=generator, dtype=D.dtype).to(D.device)
    Q = torch.linalg.qr(D @ omega).Q  # (m, width)
    for _ in range(_MAX_PASSES):
        Q = torch.linalg.qr(D @ torch.linalg.qr(D.mT @ Q).Q).Q
        U, S, Vh = torch.linalg.svd(Q.mT @ D, full_matrices=False)  # (width, width), (width,), (width, n)
        u, s, v = (Q @ U)[:, :k], S[:k], Vh[:k].mT
        # D^T u_i = s_i v_i holds by construction; what is left to check is the other side.
        residual = torch.linalg.vector_norm(D @ v - u * s, dim=0)
        if bool((residual <= _RESIDUAL * S[0]).all()):
            return TruncatedSVD(u.contiguous(), s.clone(), v.contiguous(), _is_near_tie(S), None)
    return None


def _is_near_tie(S: Tensor) -> bool:
    if len(S) < 2 or S[1] <= torch.finfo(S.dtype).eps * S[0]:
        return False
    return bool(S[0] < NEAR_TIE * S[1])

"""Leading singular triplets of a matrix, by the cheapest method that meets a bar, with the residual that shows it.

The bar: s_i within 1e-4 of the true one, |cos| > 0.999 for vectors whose s_i stands 5 % apart from its neighbours. A
residual r_i <= 4e-3 s_i is enough for it, as D D^T u_i - s_i^2 u_i is then s_i r_i long: the sine to the true vector is
at most r_i / (2 gap), the relative error of s_i at most r_i^2 / (4 s_i gap) (Parlett, The Symmetric Eigenvalue Problem,
theorems 11.7.1 and 11.7.2). Half of it is asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_SIDE = 64  # up to this smaller side LAPACK's SVD is the fastest
GRAM_SIDE = 512  # up to this one a Gram matrix in float64 is, and gives the whole spectrum
NEAR_TIE = 1.05  # below this s_i / s_(i+1) direction i is ill-defined
RESIDUAL = 2e-3  # of s_i
_MAX_BLOCKS = 40
_SETTLED_BLOCKS = 3
_PANEL_BYTES = 1 << 20  # rows that stay in a core's second-level cache between a product and its transposed


@dataclass(frozen=True)
class TruncatedSVD:
    """D ~ u diag(s) v^T.

    Attributes:
        u: left singular vectors (m, k), columns of unit length.
        s: singular values (k,), descending.
        v: right singular vectors (n, k), columns of unit length.
        near_ties: s_i / s_(i+1) < 1.05 (k,), so that direction i is ill-defined; False where s_(i+1) = 0.
        residuals: the larger of |D v_i - s_i u_i| and |D^T u_i - s_i v_i| (k,), in D's unit.
        spectrum: all min(m, n) singular values where the method gives them, else None.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    near_ties: Tensor
    residuals: Tensor
    spectrum: Tensor | None

    @property
    def near_tie(self) -> bool:
        """Whether u1 and v1 are ill-defined."""
        return bool(self.near_ties[0])


def truncated_svd(D: Tensor, k: int, start: TruncatedSVD | None = None) -> TruncatedSVD:
    """The k leading singular triplets of D in its own precision; k above min(m, n) is cut to it.

    By the smaller side: up to 64, or where over a quarter of the triplets is wanted, LAPACK's SVD; up to 512 the
    eigenvectors of the Gram matrix in float64, whose squared condition number is then harmless; above, block Krylov
    iteration with full reorthogonalisation (Musco and Musco 2015, algorithm 2), which stops by the residuals. What
    does not meet the bar in one of the last two (values far below s1, a flat spectrum) is left to LAPACK.

    Args:
        D: a finite matrix (m, n).
        k: triplets wanted, from 1.
        start: triplets of a similar matrix of the same shape, such as the previous step's: fewer iterations.
    """
    k, short = min(k, *D.shape), min(D.shape)
    found = None
    if short > EXACT_SIDE and 4 * k <= short:
        tall = D if D.shape[0] >= D.shape[1] else D.mT
        if short > GRAM_SIDE:
            guess = None if start is None else start.v if tall is D else start.u
            found = _by_krylov(tall, k, guess)
        elif D.dtype == torch.float32:
            found = _by_gram(tall, k)
        if found is not None and tall is not D:
            found = TruncatedSVD(found.v, found.s, found.u, found.near_ties, found.residuals, found.spectrum)
    return _exact(D, k) if found is None else found


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
    """Of a tall A (m, n); None where it does not converge. Blocks are rows: their products are the faster ones.

    Args:
        A: (m, n), m >= n.
        k: triplets wanted.
        guess: approximate right singular vectors (n, any number), or None.
    """
    n, width = A.shape[1], max(8, k + 4)
    block = torch.randn(width, n, generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)
    if guess is not None:  # random rows beside it: it may lack a direction altogether
        known = guess[:, :k].mT.to(A)
        block = torch.cat([known, block[len(known) :]])
    block = torch.linalg.qr(block.mT).Q.mT
    V, W, T, unit = block[:0], A.new_empty(0, A.shape[0]), torch.zeros(0, 0, dtype=torch.float64), 1.0
    for _ in range(min(_MAX_BLOCKS, n // (2 * width))):
        if len(V) == 0:
            there = block @ A.mT  # (width, m)
            unit = float(torch.linalg.vector_norm(there, dtype=torch.float64))  # keeps squares of small entries alive
            if unit == 0:
                return _zero(A, k)
            there /= unit
            back = there @ A / unit  # (width, n)
        else:
            there, back = _there_and_back(A, block, unit)
        V, W = torch.cat([V, block]), torch.cat([W, there])
        H = back @ V.mT  # (width, all)
        T = _bordered(T, H.double().cpu())
        rest = back - H @ V
        rest -= (rest @ V.mT) @ V
        Q, R = torch.linalg.qr(rest.mT)  # (n, width), (width, width)
        block = torch.linalg.qr((Q.mT - (Q.mT @ V.mT) @ V).mT).Q.mT
        squares, y = torch.linalg.eigh(T)
        theta = squares[-k - 1 :].flip(0).clamp(min=0).sqrt()  # (k + 1,): the last one tells whether s_k is tied
        left_over = torch.linalg.vector_norm(R.double().cpu() @ y[-width:, -k - 1 :].flip(1), dim=0)  # s_i r_i
        if _converged(theta, left_over, torch.finfo(A.dtype).eps, len(V) // width):
            return _ritz_triplets(A, k, V, W * unit, y[:, -width:].to(A))
    return None


def _converged(theta: Tensor, left_over: Tensor, eps: float, blocks: int) -> bool:
    """Whether the first k of k + 1 Ritz values meet the bar, and the last is known well enough to call s_k tied or not.

    Args:
        theta: Ritz values (k + 1,), descending.
        left_over: |D D^T u_i - theta_i^2 u_i| (k + 1,), float64.
        eps: of D's precision. What lies below the rounding of squares is not seen here, but in the final residuals.
        blocks: how many there are. A warm start says nothing of s_(k + 1): what does has grown from random rows.
    """
    rounding = 4 * eps * theta[0] ** 2
    if bool((left_over > torch.maximum(RESIDUAL * theta**2, rounding))[:-1].any()):
        return False
    last, following, uncertain = float(theta[-2]), float(theta[-1]), float(left_over[-1])
    tied = last < NEAR_TIE * following  # a Ritz value is never above its singular value
    untied = blocks >= _SETTLED_BLOCKS and last * following > NEAR_TIE * (following**2 + uncertain)
    return tied or untied or uncertain <= max(float(rounding), 0.05 * following**2)


def _zero(A: Tensor, k: int) -> TruncatedSVD:
    u, v = (torch.eye(side, k, dtype=A.dtype, device=A.device) for side in A.shape)
    nothing = A.new_zeros(k)
    return TruncatedSVD(u, nothing, v, nothing.bool(), nothing.clone(), None)


def _ritz_triplets(A: Tensor, k: int, V: Tensor, W: Tensor, y: Tensor) -> TruncatedSVD | None:
    """The triplets of A within the rows of V, W = V A^T; y (rows, some) combines them. None where they miss the bar."""
    U, R = torch.linalg.qr((y.mT @ W).mT)  # no squares: small values keep their digits
    P, S, Qh = torch.linalg.svd(R)
    u, s, v = (U @ P)[:, :k].contiguous(), S[:k].clone(), (Qh[:k] @ (y.mT @ V)).mT.contiguous()
    residuals = _row_norms(u.mT @ A - (v * s).mT)  # A v = u s by construction
    if bool((residuals > torch.maximum(RESIDUAL * s, 8 * torch.finfo(A.dtype).eps * s[0])).any()):
        return None
    return TruncatedSVD(u, s, v, _near_ties(S, k), residuals, None)


def _there_and_back(A: Tensor, block: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """block A^T / unit and block A^T A / unit^2. On a CPU each panel of A's rows is used twice while it is in cache."""
    scaled = block / unit
    panel = len(A) if A.is_cuda else max(1, _PANEL_BYTES // (A.shape[1] * A.element_size()))
    there, back = A.new_empty(len(block), len(A)), torch.zeros_like(block)
    for first in range(0, len(A), panel):
        rows = A[first : first + panel]
        product = scaled @ rows.mT
        there[:, first : first + panel] = product
        back.addmm_(product, rows)
    return there, back / unit


def _bordered(T: Tensor, H: Tensor) -> Tensor:
    """The symmetric matrix T with the rows H (new, all) added below and to its right."""
    old = len(T)
    grown = torch.zeros(H.shape[1], H.shape[1], dtype=T.dtype)
    grown[:old, :old] = T
    grown[old:] = H
    grown[:, old:] = H.mT
    grown[old:, old:] = (H[:, old:] + H[:, old:].mT) / 2
    return grown


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

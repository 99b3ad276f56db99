"""Block Krylov iteration for the leading right singular subspace of a matrix (Musco and Musco 2015, algorithm 2).

Blocks are rows: their products with the matrix are the faster ones.
"""

import math

import torch
from torch import Tensor

_MAX_BLOCKS = 40
# A guess may lack a direction that is new: random rows beside it find one, but not before their third power (of 120
# new directions at ranks 1 to 8 of an update, 59 were missed with two blocks, none with three). From random rows alone,
# fewer blocks do not tell either that no larger s_(k + 1) is hidden.
_RANDOM_ROWS = 4
_SETTLED_BLOCKS = 3
_SMALLEST = 1e-30  # |A|F below which a block over it is not far from what float32 can hold
_LOST = 1e-4  # of |A|^2: what is left beside the basis is then mostly rounding, and is not at right angles to it


def leading_subspace(
    A: Tensor, k: int, guess: Tensor | None, *, residual: float, near_tie: float
) -> tuple[Tensor, bool]:
    """Ritz vectors of A, and whether they have converged.

    Products are made in A's dtype; in bfloat16 they are several times faster than in float32, and what is rounded away
    spreads over all directions alike, where the caller's own Rayleigh-Ritz step in float32 removes most of it. The
    rest, orthogonalisation above all, is done in float32 at least.

    Args:
        A: (m, n), m >= n.
        k: triplets wanted.
        guess: approximate right singular vectors (n, any number), or None. Two more than k are of use.
        residual: a triplet is good once its residual is below this share of its value.
        near_tie: the ratio below which two neighbouring values count as tied.

    Returns:
        Orthonormal rows (k + 2, n) or more, the leading direction first.
    """
    n, known = A.shape[1], 0 if guess is None else min(guess.shape[1], k + 2)
    width = max(8, max(known, k) + _RANDOM_ROWS)
    rough = A.dtype == torch.bfloat16  # rounding is far above what eigenvectors in float32 add to it
    wide = torch.float32 if rough else A.dtype
    block = torch.randn(width, n, generator=torch.Generator().manual_seed(0), dtype=wide).to(A.device)
    if guess is not None:
        block[:known] = guess[:, :known].mT
    block = torch.linalg.qr(block.mT).Q.mT
    most = max(1, min(_MAX_BLOCKS, n // (2 * width)))
    basis = torch.empty(most * width, n, dtype=wide, device=A.device)
    T = torch.empty(most * width, most * width, dtype=torch.float64)  # the basis' Rayleigh quotient of A^T A
    unit, over, checked, check = 1.0, math.inf, 0, _SETTLED_BLOCKS
    for blocks in range(1, most + 1):
        old, new = (blocks - 1) * width, blocks * width
        basis[old:new] = block
        V = basis[:new]
        there = (block / unit).to(A.dtype) @ A.mT  # (width, m)
        if blocks == 1:  # keeps the squares of small entries alive
            unit = float(torch.linalg.vector_norm(there, dtype=torch.float64))
            if unit < _SMALLEST:
                return block, unit == 0
            there /= unit
        back = (there @ A).to(wide) / unit  # (width, n)
        H = back @ V.mT  # (width, new)
        T[old:new, :new] = H.double().cpu()
        T[:old, old:new] = T[old:new, :old].mT
        T[old:new, old:new] = (T[old:new, old:new] + T[old:new, old:new].mT) / 2
        rest = back - H @ V
        rest -= (rest @ V.mT) @ V
        block, R = _orthonormal(rest)
        if blocks in (check, most):
            squares, y = (part.double() for part in torch.linalg.eigh(T[:new, :new].to(torch.float32 if rough else T)))
            theta = squares[-k - 1 :].flip(0).clamp(min=0).sqrt()  # (k + 1,): the last one tells whether s_k is tied
            left_over = torch.linalg.vector_norm(R @ y[-width:, -k - 1 :].flip(1), dim=0)  # s_i r_i
            before, over = over, _over(theta, left_over, _rounding(A.dtype), residual, near_tie)
            if over <= 1:
                return _ritz_vectors(y, V, k + 2), True
            check = blocks + _blocks_to_go(before, over, blocks - checked, most=blocks // 2)
            checked = blocks
        if float(R.diagonal().abs().min()) < _LOST:
            block = _orthonormal(block - (block @ V.mT) @ V)[0]
    return _ritz_vectors(y, V, k + 2), False


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows Q (w, n) and R (w, w), float64 and on the CPU, with rows^T = Q^T R.

    By Cholesky in float64, a tenth of the cost of Householder's QR; that one where the rows are all but dependent.
    """
    precise = rows.double()
    L, failed = torch.linalg.cholesky_ex((precise @ precise.mT).cpu())
    if int(failed) or float(L.diagonal().min()) < 1e-4 * float(L.diagonal().max()):
        Q, R = torch.linalg.qr(rows.mT)
        return Q.mT, R.double().cpu()
    inverse = torch.linalg.solve_triangular(L, torch.eye(len(L), dtype=L.dtype), upper=False)
    return (inverse.to(precise) @ precise).to(rows), L.mT


def _ritz_vectors(y: Tensor, V: Tensor, count: int) -> Tensor:
    return _orthonormal(y[:, -count:].flip(1).mT.to(V) @ V)[0]


def _rounding(dtype: torch.dtype) -> float:
    """Of s_1^2: what lies below is not told from what rounding makes."""
    eps = torch.finfo(dtype).eps
    return eps**2 if dtype == torch.bfloat16 else 4 * eps


def _over(theta: Tensor, left_over: Tensor, rounding: float, residual: float, near_tie: float) -> float:
    """How far the worst of the first k of k + 1 Ritz values is over the bar; at most 1 where all meet it.

    The last must be known well enough to call s_k tied or not.

    Args:
        theta: Ritz values (k + 1,), descending.
        left_over: |A^T A v_i - theta_i^2 v_i| (k + 1,).
        rounding: of s_1^2. What lies below is left to the caller's own residuals.
        residual: of theta_i.
        near_tie: of theta_i / theta_(i + 1).
    """
    floor = max(rounding * float(theta[0]) ** 2, torch.finfo(theta.dtype).tiny)
    over = float((left_over / (residual * theta**2).clamp(min=floor))[:-1].max())
    last, following, uncertain = float(theta[-2]), float(theta[-1]), float(left_over[-1])
    tied = last < near_tie * following  # a Ritz value is never above its singular value
    untied = last * following > near_tie * (following**2 + uncertain)
    known = tied or untied or uncertain <= max(floor, 0.05 * following**2)
    return over if known else max(over, 2.0)


def _blocks_to_go(before: float, over: float, blocks: int, most: int) -> int:
    """Until the bar is likely met, had it come nearer by the same factor with each block.

    Eigenvectors of many blocks cost more than a block, so not every block is worth a look.
    """
    if not over < before < math.inf:
        return 1
    return max(1, min(most, int(blocks * math.log(over) / math.log(before / over))))

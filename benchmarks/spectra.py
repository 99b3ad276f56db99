"""What the singular triplets of a model's update cost: beside LAPACK, beside torch.svd_lowrank, and beside reading.

All rows come from one run, on the same matrices; times are CPU seconds of one thread, the smallest of several turns, so
that other work on the machine weighs little. Matrices have the shapes of a Qwen2.5-0.5B layer (or of --shapes), entries
around 1e-5, and one of two spectra: `update`, s_1 / |D|F = 0.19 over a power-law tail as in arXiv 2510.00553, and
`noise`, plain Gaussian, which has no direction to find.

    python benchmarks/spectra.py [--rank 8] [--shapes 896x896,128x896] [--turns N] [--steps 5,25] [--out FILE.csv]

Rows: `matrix` (one for each shape and spectrum), `layer` (their sum over a layer's seven matrices), `size` (update
matrices of growing size), `steps` (a trajectory of one matrix, each step from the previous one's triplets,
and without).
"""

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.optimize import brentq
from torch import Tensor

from rlstride.spectra.svd import NEAR_TIE, TruncatedSVD, truncated_svd

SHAPES = {(896, 896): 2, (128, 896): 2, (4864, 896): 2, (896, 4864): 1}  # how often a layer has each: q o, k v, gate up
SIZES = [(640, 640), (896, 896), (1280, 1280), (1792, 1792), (2560, 2560)]
SHARE_1 = 0.19
ENTRY = 1e-5
VALUE_BAR, COSINE_BAR = 1e-4, 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=8, metavar="K")
    parser.add_argument("--shapes", help="such as 896x896,128x896; a layer has each once", metavar="MxN,...")
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--steps", default="5,25", metavar="N,N", help="kept steps of the trajectories")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, rank {options.rank}", flush=True)
    shapes = SHAPES
    if options.shapes:
        shapes = {(int(m), int(n)): 1 for m, n in (shape.split("x") for shape in options.shapes.split(","))}
    rows: list[dict[str, Any]] = []
    for spectrum in ("update", "noise"):
        found = [show(matrix_row(spectrum, *shape, options.rank, options.turns)) for shape in shapes]
        rows += [*found, show(layer_row(spectrum, found, list(shapes.values())))]
    rows += [show(size_row(*shape, options.rank, options.turns)) for shape in SIZES]
    rows += [show(steps_row(int(count), options.rank, options.turns)) for count in options.steps.split(",")]
    table = pd.DataFrame(rows)
    sizes = table[table["row"] == "size"]
    exponent = np.polyfit(np.log(sizes["rows"] * sizes["cols"]), np.log(sizes["seconds"]), 1)[0]
    print(f"cost grows with the number of entries to the power {exponent:.2f}")
    if options.out:
        table.to_csv(options.out, index=False)


def show(row: dict[str, Any]) -> dict[str, Any]:
    print({key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


def matrix_row(spectrum: str, m: int, n: int, rank: int, turns: int) -> dict[str, Any]:
    D = update(m, n, seed=0) if spectrum == "update" else ENTRY * torch.randn(m, n, generator=seeded(0))
    exact = torch.linalg.svd(D.double(), full_matrices=False)
    found = truncated_svd(D, rank)
    lowrank = cheapest_lowrank(D, rank, exact)
    methods: dict[str, Callable[[], object]] = {
        "seconds": lambda: truncated_svd(D, rank),
        "svd_seconds": lambda: torch.linalg.svd(D, full_matrices=False),
    }
    if lowrank:
        methods["lowrank_seconds"] = lambda: torch.svd_lowrank(D, *lowrank)
    with tempfile.TemporaryDirectory() as folder:
        methods["read_seconds"] = reader(Path(folder), D)
        seconds = {name: fastest(method, 2 if name == "svd_seconds" else turns) for name, method in methods.items()}
    values, cosine = errors((found.u, found.s, found.v), exact)
    return {
        "row": "matrix",
        "spectrum": spectrum,
        "rows": m,
        "cols": n,
        **seconds,
        "times_faster_than_svd": seconds["svd_seconds"] / seconds["seconds"],
        "of_lowrank": seconds["seconds"] / seconds.get("lowrank_seconds", math.nan),
        "lowrank": "q={} niter={}".format(*lowrank) if lowrank else "misses the bar",
        "of_reading": seconds["seconds"] / seconds["read_seconds"],
        "value_error": values,
        "least_cosine": cosine,
        "residual": float((found.residuals / found.s).max()),
        "near_ties": int(found.near_ties.sum()),
        "near_ties_of_svd": int((exact.S[:rank] < NEAR_TIE * exact.S[1 : rank + 1]).sum()),
    }


def layer_row(spectrum: str, matrices: list[dict[str, Any]], counts: list[int]) -> dict[str, Any]:
    total = {
        name: sum(count * row.get(name, math.nan) for row, count in zip(matrices, counts, strict=True))
        for name in ("seconds", "svd_seconds", "lowrank_seconds", "read_seconds")
    }
    return {
        "row": "layer",
        "spectrum": spectrum,
        **total,
        "times_faster_than_svd": total["svd_seconds"] / total["seconds"],
        "of_lowrank": total["seconds"] / total["lowrank_seconds"],
        "of_reading": total["seconds"] / total["read_seconds"],
    }


def size_row(m: int, n: int, rank: int, turns: int) -> dict[str, Any]:
    D = update(m, n, seed=0)
    return {"row": "size", "rows": m, "cols": n, "seconds": fastest(lambda: truncated_svd(D, rank), turns)}


def steps_row(count: int, rank: int, turns: int) -> dict[str, Any]:
    """D(t) = g(t) D + what of the noise is left, g(t) = t / count: directions settle while the update grows."""
    D, other = update(896, 896, seed=0), update(896, 896, seed=1)
    matrices = [(t * D + 0.1 * math.sqrt(t) * other) / count for t in range(1, count + 1)]

    def warm() -> None:
        start: TruncatedSVD | None = None
        for matrix in matrices:
            start = truncated_svd(matrix, rank, start)

    seconds = fastest(warm, turns)
    cold = fastest(lambda: [truncated_svd(matrix, rank) for matrix in matrices], turns)
    return {"row": "steps", "steps": count, "seconds": seconds, "cold_seconds": cold, "warm_of_cold": seconds / cold}


def update(m: int, n: int, seed: int) -> Tensor:
    """s_i = s_1 i^-p, with p such that s_1 / |D|F = 0.19; random directions; entries around 1e-5."""
    i = np.arange(1, min(m, n) + 1)
    p = brentq(lambda p: (i ** (-2.0 * p)).sum() - SHARE_1**-2, 0, 5)
    s = torch.from_numpy(i**-p)
    generator = seeded(seed)
    U, V = (torch.linalg.qr(torch.randn(side, len(i), generator=generator)).Q.double() for side in (m, n))
    return ((U * (s * ENTRY * math.sqrt(m * n) / s.norm())) @ V.mT).float()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cheapest_lowrank(D: Tensor, rank: int, exact: Any) -> tuple[int, int] | None:
    """q and niter of the fastest torch.svd_lowrank that meets the bar; None where none of those tried does."""
    best: tuple[float, tuple[int, int]] | None = None
    for q in (rank + 8, 3 * rank, 4 * rank, 6 * rank):
        for niter in (2, 3, 4, 6, 8, 12, 16, 24):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(D, q, niter)
            values, cosine = errors((u[:, :rank], s[:rank], v[:, :rank]), exact)
            if values <= VALUE_BAR and not cosine < COSINE_BAR:  # NaN: all are tied
                seconds = fastest(lambda q=q, niter=niter: torch.svd_lowrank(D, q, niter), 2)
                best = min(best or (math.inf, (0, 0)), (seconds, (q, niter)))
                break
    return best[1] if best else None


def errors(found: tuple[Tensor, Tensor, Tensor], exact: Any) -> tuple[float, float]:
    """The largest relative error of a value, and the smallest |cos| of a vector whose value is not tied."""
    u, s, v = (part.double() for part in found)
    k, S = len(s), exact.S
    apart = S[:k] >= NEAR_TIE * S[1 : k + 1]
    apart[1:] &= apart[:-1].clone()
    cosines = torch.minimum((u * exact.U[:, :k]).sum(0).abs(), (v * exact.Vh[:k].mT).sum(0).abs())[apart]
    return float(((s - S[:k]).abs() / S[:k]).max()), float(cosines.min()) if len(cosines) else math.nan


def reader(folder: Path, D: Tensor) -> Callable[[], Tensor]:
    """Both checkpoints' files, from the page cache, subtracted: what no method can do without."""
    before = 0.02 * torch.randn(D.shape, generator=seeded(2))
    for name, tensor in (("before", before), ("after", before + D)):
        save_file({"w": tensor}, folder / name)

    def read() -> Tensor:
        tensors = []
        for name in ("after", "before"):
            with safe_open(folder / name, "pt") as file:
                tensors.append(file.get_tensor("w"))
        return tensors[0] - tensors[1]

    return read


def fastest(work: Callable[[], object], turns: int) -> float:
    """CPU seconds of the fastest of several turns."""
    seconds = []
    for _ in range(turns):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()

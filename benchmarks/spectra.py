"""What the singular triplets of a model's update cost: beside LAPACK, beside torch.svd_lowrank, and beside reading.

All rows come from one run; times are CPU seconds of one thread (of one GPU: seconds), the smallest of several turns, so
that other work on the machine weighs little.

    python benchmarks/spectra.py [--rank 8] [--turns 5] [--models NAME,..] [--steps 1,5,25] [--device cpu]
                                 [--scratch FOLDER] [--out FILE.csv] [--document]

Rows: `matrix`, one for each shape of a Qwen2.5-0.5B layer and spectrum, in memory, entries around 1e-5: `update`,
s_1 / |D|F = 0.19 over a power-law tail as in arXiv 2510.00553, and `noise`, plain Gaussian, which has no direction to
find; `layer`, their sum over a layer's seven matrices; `model`, a whole pair of checkpoints on disk in the shapes of a
real model, bfloat16, from the page cache: all that `rlstride spectra` does, beside reading and subtracting them;
`steps`, a trajectory of checkpoints on disk; `warm`, decompositions along such a trajectory, from the previous step's
and without. --document writes docs/benchmarks.md's section and figure.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from document import machine
from model_files import ENTRY, MODELS, Run, known_update
from on_disk import peak_anonymous_mib, read_in_panels, read_plainly, spectra_of
from spectra_section import write_document
from torch import Tensor

from rlstride.spectra.svd import NEAR_TIE, TruncatedSVD, truncated_svd

SHAPES = {(896, 896): 2, (128, 896): 2, (4864, 896): 2, (896, 4864): 1}  # how often a layer has each: q o, k v, gate up
VALUE_BAR, COSINE_BAR = 1e-4, 0.999
STEPS_OF = "Pythia-70M"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=8, metavar="K")
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--models", default=",".join(list(MODELS)[:-1]), metavar="NAME,..", help=", ".join(MODELS))
    parser.add_argument("--steps", default="1,5,25", metavar="N,..", help=f"kept steps of the {STEPS_OF} trajectories")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where models are made: 13 GB for Qwen2.5-3B")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--measured", type=Path, metavar="FILE.csv", help="write it from an earlier run's --out alone")
    options = parser.parse_args()
    if options.measured:
        write_document(pd.read_csv(options.measured))
        return
    torch.set_num_threads(1)
    print(machine(), flush=True)
    names = [name for name in options.models.split(",") if name]
    device, rank, turns = options.device, options.rank, options.turns
    rows: list[Row] = []
    for spectrum in ("update", "noise"):
        found = [show(matrix_row(spectrum, *shape, rank, turns, device)) for shape in SHAPES]
        rows += [*found, show(layer_row(spectrum, found))]
    rows += [show(warm_row(count, rank, turns, device)) for count in (5, 25)]
    for count in map(int, filter(None, options.steps.split(","))):
        rows.append(show(files_row("steps", STEPS_OF, count, options)))
    rows += [show(files_row("model", name, 1, options)) for name in names]
    table = pd.DataFrame(rows).assign(machine=machine(), rank=rank)
    if options.out:
        table.to_csv(options.out, index=False, float_format="%.6g")
    if options.document:
        write_document(table)


def show(row: Row) -> Row:
    print({key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


def matrix_row(spectrum: str, m: int, n: int, rank: int, turns: int, device: str) -> Row:
    D = known_update(m, n, seed=0) if spectrum == "update" else ENTRY * torch.randn(m, n, generator=seeded(0))
    D = D.to(device)
    exact = torch.linalg.svd(D.double(), full_matrices=False)
    found = truncated_svd(D, rank)
    lowrank = cheapest_lowrank(D, rank, exact)
    seconds = {
        "seconds": fastest(lambda: truncated_svd(D, rank), turns),
        "svd_seconds": fastest(lambda: torch.linalg.svd(D, full_matrices=False), 2),
        "lowrank_seconds": fastest(lambda: torch.svd_lowrank(D, *lowrank), turns) if lowrank else math.nan,
    }
    values, cosine = errors((found.u, found.s, found.v), exact)
    return {
        "row": "matrix",
        "spectrum": spectrum,
        "rows": m,
        "cols": n,
        **with_ratios(seconds),
        "lowrank": "q={} niter={}".format(*lowrank) if lowrank else "misses the bar",
        "value_error": values,
        "least_cosine": cosine,
        "residual": float((found.residuals / found.s).max()),
        "near_ties": int(found.near_ties.sum()),
        "near_ties_of_svd": int((exact.S[:rank] < NEAR_TIE * exact.S[1 : rank + 1]).sum()),
    }


def layer_row(spectrum: str, matrices: list[Row]) -> Row:
    counts = [SHAPES[row["rows"], row["cols"]] for row in matrices]
    names = ("seconds", "svd_seconds", "lowrank_seconds")
    total = {name: sum(count * row[name] for row, count in zip(matrices, counts, strict=True)) for name in names}
    return {"row": "layer", "spectrum": spectrum, **with_ratios(total)}


def with_ratios(seconds: dict[str, float]) -> Row:
    return seconds | {
        "times_faster_than_svd": seconds["svd_seconds"] / seconds["seconds"],
        "of_lowrank": seconds["seconds"] / seconds["lowrank_seconds"],
    }


def warm_row(count: int, rank: int, turns: int, device: str) -> Row:
    """D(t) = (t D + 0.1 sqrt(t) D') / count: directions settle while the update grows. Both times are of one step."""
    D, other = (known_update(4864, 896, seed).to(device) for seed in (0, 1))
    matrices = [(t * D + 0.1 * math.sqrt(t) * other) / count for t in range(1, count + 1)]
    first = truncated_svd(matrices[0], rank)

    def warm() -> None:
        start: TruncatedSVD = first
        for matrix in matrices[1:]:
            start = truncated_svd(matrix, rank, start)

    seconds = fastest(warm, turns) / (count - 1)
    cold = fastest(lambda: [truncated_svd(matrix, rank) for matrix in matrices[1:]], turns) / (count - 1)
    return {"row": "warm", "steps": count, "seconds": seconds, "cold_seconds": cold, "warm_of_cold": seconds / cold}


def files_row(kind: str, name: str, steps: int, options: argparse.Namespace) -> Row:
    turns = 3 if MODELS[name].parameters * steps < 1e9 else 2
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        run = Run(MODELS[name], Path(folder), steps, ENTRY)
        plain = fastest(lambda: read_plainly(run, options.device), turns)
        panels = fastest(lambda: read_in_panels(run), turns) if options.device == "cpu" else math.nan
        seconds = fastest(lambda: spectra_of(run, Path(folder), options.rank, options.device), turns)
        memory = peak_anonymous_mib(run, Path(folder), options.rank, options.device)
    return {
        "row": kind,
        "model": name,
        "parameters": MODELS[name].parameters,
        "steps": steps,
        "seconds": seconds,
        "read_seconds": plain,
        "panel_seconds": panels,
        "of_reading": seconds / plain,
        "of_panels": seconds / panels,
        "peak_anonymous_mib": memory,
    }


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


def fastest(work: Callable[[], object], turns: int) -> float:
    """Seconds of the fastest of several turns: of this process's CPU, or of the wall where a GPU works."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = []
    for _ in range(turns):
        started = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return float(np.min(seconds))


if __name__ == "__main__":
    main()

"""Whether any movement of the weights allows a jump past the first part of RL, were its length chosen without cost.

From the weights W(t) of a run, and from what was kept of it before, points further on:

- ``full`` and ``rank_1``: W(t) + c P(W(t) - W(t-1)), t counting kept steps; P is the identity, or the rank-1 part of
  every matrix with the norm of the whole;
- ``momentum``: along the average of all movements so far, each weighted 0.7 times as much as the next (Polyak 1964);
- ``mean``: towards A, the mean of the last three kept weights;
- ``mean_full`` and ``mean_rank_1``: A + c P(A - B), B being the mean of the three before those;
- ``anderson_m``: towards what Anderson mixing makes of the last m + 1 movements (Walker and Ni 2011, section 2);
- ``by_kind``: the full movement with a factor for each kind of matrix, every kind's tried alone;
- ``later_n``: for comparison, what the run itself gained n steps later.

c is chosen on one half of the study's validation problems, staying at W(t) among the candidates, and its gain reported
on the other half, both ways; ``best`` is the gain of the factor that was best on the very problems it is reported on: a
rule for the length, such as a trust region by KL, does no better along that line. All with the same random numbers. The
runs are those of experiments/stride.py without strides, seed 0; a run that the table has already is left out.

    python experiments/late_jumps.py --out FILE.csv [--study config/studies/stride.yaml] [--models NAME,NAME]
        [--algorithms NAME,NAME] [--steps 24,36,48]
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlstride.evaluation.scorer import ValidationScorer
from rlstride.stride.line_search import direction
from rlstride.study.load import load_study
from rlstride.study.paths import study_paths
from rlstride.study.study import Cell, Study
from rlstride.trajectory.store import Trajectory

Weights = dict[str, Tensor]
Scores = NDArray[np.float64]  # (n,), a problem's mean over its samples
FACTORS, OF_KINDS, LATER, DECAY = (0.25, 0.5, 1.0, 2.0, 4.0), (1.0, 3.0), (3, 6, 12), 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config/studies/stride.yaml"), metavar="FILE")
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,NAME")
    parser.add_argument("--algorithms", type=lambda text: text.split(","), default=["grpo", "rloo", "ppo"])
    parser.add_argument("--steps", type=lambda text: list(map(int, text.split(","))), default=[24, 36, 48])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    options = parser.parse_args()
    study = load_study(options.study)
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    done = {(row["model"], row["algorithm"]) for row in rows}
    for model in options.models or study.spec.models:
        for algorithm in options.algorithms:
            if (model, algorithm) not in done:
                rows += of_run(study, Cell(model, algorithm, 0), options.steps)
                pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")
    means = pd.DataFrame(rows).groupby(["direction", "step"], sort=False)[["gain", "best"]].mean()
    print(means.unstack().to_string(float_format="%+.3f"))


def of_run(study: Study, cell: Cell, steps: list[int]) -> list[dict[str, object]]:
    """What every direction gains at some steps."""
    trajectory = Trajectory(study_paths(study).cell(cell).trajectory)
    scorer = ValidationScorer(study, trajectory)
    rows: list[dict[str, object]] = []
    for step in steps:
        kept = [weights(trajectory, other) for other in trajectory.steps if other <= step]
        stay = np.array(scorer(kept[-1]).scores)

        def gains(made: Weights, stay: Scores = stay) -> Scores:
            return np.array(scorer(made).scores) - stay

        found = {name: of_line({c: gains(point(c)) for c in FACTORS}) for name, point in lines(kept).items()}
        found["by_kind"] = by_kind(kept[-1], difference(kept[-1], kept[-2]), gains)
        for later in (step + more for more in LATER if step + more in trajectory.steps):
            gain = float(gains(weights(trajectory, later)).mean())
            found[f"later_{later - step}"] = {"gain": gain, "best": gain}
        about = {"model": cell.model, "algorithm": cell.algorithm, "step": step, "accuracy": float(stay.mean())}
        rows += [{**about, "direction": name, **values} for name, values in found.items()]
    return rows


def weights(trajectory: Trajectory, step: int) -> Weights:
    source = trajectory.source(step)
    return {name: source.tensor(name).float() for name in source.names()}


def lines(kept: list[Weights]) -> dict[str, Callable[[float], Weights]]:
    """The point at factor c of every line; of kept weights, the last one at the end, six at least."""
    W, movements = kept[-1], [difference(after, before) for before, after in pairwise(kept)]
    A, B = mean(kept[-3:]), mean(kept[-6:-3])
    momentum = movements[0]
    for movement in movements[1:]:
        momentum = moved(momentum, difference(movement, momentum), 1 - DECAY)
    found = {
        "full": (W, movements[-1]),
        "rank_1": (W, rank_1(movements[-1])),
        "momentum": (W, momentum),
        "mean": (W, difference(A, W)),
        "mean_full": (A, difference(A, B)),
        "mean_rank_1": (A, rank_1(difference(A, B))),
        **{f"anderson_{m}": (W, difference(anderson(kept[-m - 2 :]), W)) for m in (2, 4)},
    }
    return {name: lambda c, origin=origin, D=D: moved(origin, D, c) for name, (origin, D) in found.items()}  # type: ignore[misc]


def anderson(kept: list[Weights]) -> Weights:
    """sum a_i x_{i+1} over all tensors, with the a_i, adding up to 1, whose |sum a_i (x_{i+1} - x_i)| is smallest."""
    f = [
        torch.cat([D.flatten() for D in difference(after, before).values()]).double()
        for before, after in pairwise(kept)
    ]  # (d,) each
    changes = torch.stack([after - before for before, after in pairwise(f)], dim=1)  # (d, m)
    g = torch.linalg.lstsq(changes, f[-1][:, None], driver="gelsd").solution[:, 0].tolist()  # |f_m - changes g|
    shares = np.diff([0.0, *g, 1.0])  # the same problem without its constraint: a_0 = g_0, a_i = g_i - g_{i-1}, ...
    return {name: sum(float(a) * W[name] for a, W in zip(shares, kept[1:], strict=True)) for name in kept[0]}  # type: ignore[misc]


def of_line(gains: Mapping[float, Scores]) -> dict[str, float]:
    """The gain that the best factor of one half of the problems has on the other half; that of the best on all."""
    candidates = {0.0: np.zeros_like(next(iter(gains.values()))), **gains}
    chosen = [max(candidates, key=lambda c, half=half: candidates[c][half].mean()) for half in halves()]  # type: ignore[misc]
    crossed = [candidates[c][other].mean() for c, other in zip(chosen, reversed(halves()), strict=True)]
    return {"gain": float(np.mean(crossed)), "best": max(float(each.mean()) for each in candidates.values())}


def by_kind(W: Weights, D: Weights, gains: Callable[[Weights], Scores]) -> dict[str, float]:
    """Each kind's best factor of those tried alone, all kinds at once; ``best`` is with factors of all problems."""
    kinds = sorted({kind(name) for name in D})
    alone = {(k, c): gains(moved(W, only(D, {k: 1.0}), c)) for k in kinds for c in OF_KINDS}

    def together(part: slice) -> Scores:
        factors = {k: max((0.0, *OF_KINDS), key=lambda c: alone[k, c][part].mean() if c else 0.0) for k in kinds}
        return gains(moved(W, only(D, factors), 1.0))

    crossed = [together(half)[other].mean() for half, other in zip(halves(), reversed(halves()), strict=True)]
    return {"gain": float(np.mean(crossed)), "best": max(0.0, float(together(slice(None)).mean()))}


def halves() -> list[slice]:
    return [slice(0, None, 2), slice(1, None, 2)]


def kind(name: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def only(D: Weights, factors: Mapping[str, float]) -> Weights:
    return {name: factors.get(kind(name), 0.0) * tensor for name, tensor in D.items()}


def rank_1(D: Weights) -> Weights:
    return {name: direction(tensor, "rank_1") for name, tensor in D.items()}


def mean(kept: list[Weights]) -> Weights:
    return {name: sum(each[name] for each in kept) / len(kept) for name in kept[0]}  # type: ignore[misc]


def difference(after: Weights, before: Weights) -> Weights:
    return {name: after[name] - before[name] for name in after}


def moved(W: Weights, D: Weights, c: float) -> Weights:
    return {name: W[name] + c * D[name] for name in W}


if __name__ == "__main__":
    main()

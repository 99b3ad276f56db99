"""Whether averaging finds a direction that a jump can take late in RL, where the weights oscillate across valleys.

Of a run's kept weights W(t): ``mean_k`` is the mean of the last k of them; A that of the last three and B of the three
before. ``full_c`` and ``rank_1_c`` are A + c P(A - B), with P the identity or the rank-1 part of every matrix with the
norm of the whole, and ``last_c`` is W(t) + c (A - B). All scored on the study's validation problems, with the same
random numbers; the runs are those of benchmarks/stride.py without strides, seed 0.

    python benchmarks/averaged_movement.py [--study config/studies/stride.yaml] [--models NAME,NAME]
        [--algorithms NAME,NAME] [--steps 24,33,42,51,60] [--out FILE.csv]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torch import Tensor

from rlstride.evaluation.scorer import ValidationScorer
from rlstride.extrapolation.stride import direction
from rlstride.study.load import Cell, Study, load_study
from rlstride.study.paths import study_paths
from rlstride.trajectory.store import Trajectory

Weights = dict[str, Tensor]
MEANS, FACTORS, OF_LAST = (2, 3, 4, 6), (0.33, 0.67, 1.0, 1.5, 2.5), (0.33, 0.67, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config/studies/stride.yaml"), metavar="FILE")
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,NAME")
    parser.add_argument("--algorithms", type=lambda text: text.split(","), default=["grpo", "rloo", "ppo"])
    parser.add_argument("--steps", type=lambda text: list(map(int, text.split(","))), default=[24, 33, 42, 51, 60])
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    study = load_study(options.study)
    rows = []
    for model in options.models or study.spec.models:
        for algorithm in options.algorithms:
            rows += of_run(study, Cell(model, algorithm, 0), options.steps)
            table = pd.DataFrame(rows)
            if options.out:
                table.to_csv(options.out, index=False, float_format="%.4g")
    print(table.groupby(["variant", "step"], sort=False)["gain"].mean().unstack().to_string(float_format="%+.3f"))


def of_run(study: Study, cell: Cell, steps: list[int]) -> list[dict[str, object]]:
    """Accuracy of every variant at some steps, and what it gains over the weights of that step."""
    trajectory = Trajectory(study_paths(study).cell(cell).trajectory)
    score = ValidationScorer(study, trajectory)
    rows: list[dict[str, object]] = []
    for step in steps:
        made = variants([weights(trajectory, kept) for kept in trajectory.steps if kept <= step])
        found = {name: score(make()).accuracy for name, make in made.items()}
        about = {"model": cell.model, "algorithm": cell.algorithm, "step": step}
        rows += [{**about, "variant": name, "accuracy": a, "gain": a - found["last"]} for name, a in found.items()]
    return rows


def weights(trajectory: Trajectory, step: int) -> Weights:
    source = trajectory.source(step)
    return {name: source.tensor(name).float() for name in source.names()}


def variants(kept: list[Weights]) -> dict[str, Callable[[], Weights]]:
    """What can be made of kept weights, the last one at the end; six at least."""
    last, A, B = kept[-1], mean(kept[-3:]), mean(kept[-6:-3])
    D = {name: A[name] - B[name] for name in A}
    found: dict[str, Callable[[], Weights]] = {"last": lambda: last}
    found |= {f"mean_{k}": lambda k=k: mean(kept[-k:]) for k in MEANS}  # type: ignore[misc]
    for along in ("full", "rank_1"):
        P = {name: direction(D[name], along) for name in D}
        found |= {f"{along}_{c:g}": lambda c=c, P=P: moved(A, P, c) for c in FACTORS}  # type: ignore[misc]
    return found | {f"last_{c:g}": lambda c=c: moved(last, D, c) for c in OF_LAST}  # type: ignore[misc]


def mean(kept: list[Weights]) -> Weights:
    return {name: sum(each[name] for each in kept) / len(kept) for name in kept[0]}  # type: ignore[misc]


def moved(W: Weights, D: Weights, c: float) -> Weights:
    return {name: W[name] + c * D[name] for name in W}


if __name__ == "__main__":
    main()

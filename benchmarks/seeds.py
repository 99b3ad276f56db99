"""What it would save to train a cell's seeds in one process, instead of in one for each.

Runs `rlstride train` for every seed of one cell: each in a process of its own, and one after the other in one process,
turn by turn. CPU seconds (OMP_NUM_THREADS=1), means over turns; the weights of the last step must be the same bits.

    python benchmarks/seeds.py [--study FILE] [--cell MODEL/ALGORITHM] [--turns N] [--document]

The model's base must be there (`rlstride pretrain`).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from document import machine, write_section

from rlstride.study.load import load_study
from rlstride.trajectory.store import Trajectory

_TRAIN = """
import sys
from rlstride.cli import main
study, out, *cells = sys.argv[1:]
for cell in cells:
    if status := main(["train", "--study", study, "--cell", cell, "--out", f"{out}/{cell}/trajectory"]):
        sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config/studies/extrapolation.yaml"), metavar="FILE")
    parser.add_argument("--cell", default="tiny-qwen2/grpo", metavar="MODEL/ALGORITHM")
    parser.add_argument("--turns", type=int, default=2, metavar="N")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    study = load_study(options.study)
    cells = [f"{options.cell}/{seed}" for seed in study.spec.seeds]
    apart, together = [], []
    for _ in range(options.turns):
        with tempfile.TemporaryDirectory() as folder:
            one, other = Path(folder) / "apart", Path(folder) / "together"
            apart.append(sum(train(options.study, one, [cell]) for cell in cells))
            together.append(train(options.study, other, cells))
            for cell in cells:
                require_same(one / cell / "trajectory", other / cell / "trajectory")
        print(f"apart {apart[-1]:.1f} s, together {together[-1]:.1f} s", flush=True)
    if options.document:
        write_document(options.cell, study.spec.training.steps, len(cells), mean(apart), mean(together))


def train(study: Path, out: Path, cells: list[str]) -> float:
    """Trains cells one after the other in one new process; its CPU seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _TRAIN, str(study), str(out), *cells]
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def require_same(one: Path, other: Path) -> None:
    """Raises ValueError where two runs do not end with the same bits."""
    ends = [run.files(run.full_last_step) for run in (Trajectory(one), Trajectory(other))]
    if [file.read_bytes() for file in ends[0]] != [file.read_bytes() for file in ends[1]]:
        raise ValueError(f"{one} and {other} end differently")


def write_document(cell: str, steps: int, seeds: int, apart: float, together: float) -> None:
    write_section(
        "seeds",
        f"""## Seeds in one process

{machine()} `python benchmarks/seeds.py`: {cell}, {steps} steps, {seeds} seeds.

| | CPU seconds |
| --- | --- |
| a process for each seed | {apart:.1f} |
| all in one | {together:.1f} |
| saved | {1 - together / apart:.0%} |

Both end with the same bits. That much is what it takes to import PyTorch, transformers and TRL again. The pipeline
keeps a process, and so a job, for each seed: seeds run side by side, one that fails is made again alone, and one that
is added to a study later does not have Snakemake measure the others again.
""",
    )


if __name__ == "__main__":
    main()

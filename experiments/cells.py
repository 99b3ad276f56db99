"""Goes through a study a few runs at a time, and lets their weights go once they are measured.

.venv/bin/python experiments/cells.py --study config/studies/real.yaml --cores 2

For studies whose trajectories do not fit on the disk: 15 kept steps of 134.5 M parameters are 8 GB a run. A run that is
measured keeps its last step alone; tables and report need no more. Runs that are measured already are left as they
are, so that the same command goes on after it was stopped. When all are done, `snakemake` makes tables and report.

With --keep FOLDER, what tables are made from is copied there too, without weights: a study that takes days, or several
machines, comes together in one folder. `rlstride collect`, `judge` and `report` make tables and report of it.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlstride.study.load import load_study
from rlstride.study.paths import CellPaths, StudyPaths, study_paths
from rlstride.study.plan import kept_steps, step_folder
from rlstride.study.study import Cell, Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, required=True, metavar="FILE")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="runs at a time, a core for each (default 2)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy what was measured there, without weights")
    parser.add_argument("--most", type=int, metavar="N", help="stop after so many runs")
    options = parser.parse_args()
    study = load_study(options.study)
    paths = study_paths(study)
    done = StudyPaths(options.keep) if options.keep else paths
    if asked := nulls_to_make(study, done):
        print(f"asks {', '.join(asked)} in other ways", flush=True)
        if status := snakemake(options.study, options.cores, [str(paths.nulls(model)) for model in asked]):
            sys.exit(status)
        for model in asked if options.keep else ():
            keep_tables(paths.nulls(model).parent, done.nulls(model).parent)
    runs = [run for run in order_of(study) if not done.cell(run).measured.is_file()][: options.most]
    for start in range(0, len(runs), options.cores):
        together = runs[start : start + options.cores]
        print(f"measures {', '.join(map(str, together))}", flush=True)
        targets = [str(paths.cell(run).measured) for run in together]
        if status := snakemake(options.study, options.cores, targets):
            sys.exit(status)
        for run in together:
            let_weights_go(paths.cell(run), study)
            if options.keep:
                keep(paths.cell(run), done.cell(run))
    left = [run for run in order_of(study) if not done.cell(run).measured.is_file()]
    print(f"{len(left)} of {len(order_of(study))} runs are left" if left else "all runs are measured")


def order_of(study: Study) -> list[Cell]:
    """Controls first, as every cell is scored with them; then seed by seed, so that a part is a whole grid."""
    return study.control_cells + sorted(study.cells, key=lambda cell: cell.seed)


def nulls_to_make(study: Study, done: StudyPaths) -> list[str]:
    """The models whose base is to be asked in other ways, and was not yet."""
    models = study.spec.models if study.spec.nulls.asked else []
    return [model for model in models if not done.nulls(model).is_file()]


def snakemake(study: Path, cores: int, targets: Sequence[str]) -> int:
    """Makes some files of a study; returns Snakemake's exit status."""
    program = Path(sys.executable).with_name("snakemake")
    command = [program, *targets, "--profile", "profiles/local", "--cores", str(cores), "--configfile", study]
    return subprocess.run(list(map(str, command)), check=False).returncode


def let_weights_go(paths: CellPaths, study: Study) -> None:
    """Removes all kept steps but the last."""
    for step in kept_steps(study.spec.training)[:-1]:
        shutil.rmtree(paths.trajectory / step_folder(step), ignore_errors=True)


def keep(made: CellPaths, kept: CellPaths) -> None:
    """Copies what a run measured. The last file marks it as whole."""
    keep_tables(made.root, kept.root)
    kept.trajectory.mkdir(exist_ok=True)
    shutil.copy(made.manifest, kept.manifest)
    shutil.copytree(made.ledger, kept.ledger, dirs_exist_ok=True)
    kept.measured.touch()


def keep_tables(made: Path, kept: Path) -> None:
    """Copies a folder's tables, to five digits, in half of the space."""
    kept.mkdir(parents=True, exist_ok=True)
    for file in made.glob("*.parquet"):
        frame = pd.read_parquet(file)
        measured = list(frame.select_dtypes("float"))
        frame[measured] = five_digits(frame[measured].to_numpy())
        others = [column for column in frame if column not in measured]
        small = {"compression": "zstd", "compression_level": 19, "use_byte_stream_split": measured}
        frame.to_parquet(kept / file.name, index=False, use_dictionary=others, **small)


def five_digits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Single precision whose last seven bits are zero: off by 8e-6 of a value at most."""
    rounded = (values.astype(np.float32).view(np.uint32) + np.uint32(64)) & np.uint32(0xFFFFFF80)
    return np.where(np.isfinite(values), rounded.view(np.float32), values).astype(np.float32)


if __name__ == "__main__":
    main()

"""Says where a study's results are and what each stage cost, from the benchmark files that Snakemake writes.

Usage: python workflow/scripts/summary.py STUDY_FILE [RESULTS_FOLDER]
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from rlstride.budget.stages import STAGES
from rlstride.study.load import load_study


@dataclass(frozen=True)
class Job:
    """What one job took: wall-clock seconds, and the most memory that it held in MiB."""

    seconds: float
    memory: float


def read_jobs(benchmarks: Path, stage: str) -> list[Job]:
    """The jobs of a stage: its own file, or one for each of its wildcards."""
    files = [benchmarks / f"{stage}.tsv", *sorted((benchmarks / stage).rglob("*.tsv"))]
    return [job for file in files if file.is_file() for job in _read(file)]


def table(benchmarks: Path) -> str:
    """One line for each stage that ran."""
    lines = [f"{'stage':<24}{'jobs':>5}{'seconds':>10}{'longest':>10}{'peak MiB':>10}"]
    total = 0.0
    for stage in STAGES:
        jobs = read_jobs(benchmarks, stage)
        if not jobs:
            continue
        seconds = [job.seconds for job in jobs]
        total += sum(seconds)
        memory = max(job.memory for job in jobs)
        lines.append(f"{stage:<24}{len(jobs):>5}{sum(seconds):>10.0f}{max(seconds):>10.0f}{memory:>10.0f}")
    return "\n".join([*lines, f"{'together':<24}{'':>5}{total:>10.0f}"])


def summary(study_file: Path, results: Path | None = None) -> str:
    """Where the report, the tables and the MLflow database are, and the time of each stage."""
    spec = load_study(study_file).spec
    results = results or Path(spec.results)
    root = results / spec.name
    return "\n".join(
        [
            "",
            "Seconds of work by stage, from the last run of each job (jobs ran side by side):",
            table(root / "benchmarks"),
            "",
            f"report   {root / 'report' / 'index.html'}",
            f"tables   {root / 'tables'}/",
            f"MLflow   {spec.tracking.uri or results / 'mlflow.db'}   (`make ui` shows it)",
        ]
    )


def _read(file: Path) -> list[Job]:
    with file.open(newline="") as stream:
        return [Job(float(row["s"]), _number(row["max_rss"])) for row in csv.DictReader(stream, delimiter="\t")]


def _number(text: str) -> float:
    """Snakemake writes - or NA where a job ended before it was looked at."""
    try:
        return float(text)
    except ValueError:
        return 0.0


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))

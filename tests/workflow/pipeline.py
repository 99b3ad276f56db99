"""Runs the real Snakefile as a person would, from the repository's root or in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from warm_start import warm_programs

ROOT = Path(__file__).parents[2]
DEFAULT_STUDY = ROOT / "config" / "config.yaml"
SMOKE_STUDY = ROOT / "config" / "studies" / "smoke.yaml"


def run(
    program: str, *arguments: str | Path, folder: Path = ROOT, timeout: int = 1200, warm: bool = False
) -> subprocess.CompletedProcess[str]:
    """One of the programs installed beside this Python, or of those that start warm, with its output."""
    programs = warm_programs() if warm else Path(sys.executable).parent
    command = [str(programs / program), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def snakemake(
    *arguments: str | Path, folder: Path = ROOT, timeout: int = 1200, warm: bool = True
) -> subprocess.CompletedProcess[str]:
    """Snakemake on the repository's Snakefile; paths are relative to ``folder``, where it also keeps its records.

    It and its jobs start warm, but for those of the smoke study, whose time and memory are measured.
    """
    everything = ("--snakefile", ROOT / "Snakefile", *arguments)
    return run("snakemake", *everything, folder=folder, timeout=timeout, warm=warm)


def planned_jobs(*arguments: str | Path, folder: Path = ROOT) -> dict[str, int]:
    """How many jobs of each rule a dry run lists, without `all`; empty where there is nothing to do."""
    done = snakemake("-n", *arguments, "--quiet", "host", "rules", "reason", folder=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    rows = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule not in ("all", "total")}


def write_study(folder: Path, start_from: Path = DEFAULT_STUDY, **changes: object) -> Path:
    """A study file, with the catalogues beside it. Some keys changed; a mapping changes keys inside its section."""
    study = yaml.safe_load(start_from.read_text(encoding="utf-8"))
    for key, value in changes.items():
        study[key] = {**study.get(key, {}), **value} if isinstance(value, dict) else value
    for catalogue in ("models.yaml", "algorithms.yaml", "tasks.yaml"):
        shutil.copy(ROOT / "config" / catalogue, folder)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path

"""The commands in profiles/slurm/bin before stand-ins for Slurm's own; tests/slurm has the real ones."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from pipeline import ROOT

BIN = ROOT / "profiles" / "slurm" / "bin"


def call(
    tmp_path: Path, name: str, script: str, patience: int = 60, arguments: Sequence[str] = ("a b", "c")
) -> subprocess.CompletedProcess[str]:
    """A command of BIN, behind which the real one is a script."""
    real = tmp_path / name
    real.write_text(f"#!/bin/sh\n{script}\n")
    real.chmod(0o755)
    environment = {
        "PATH": os.pathsep.join([str(BIN), str(tmp_path), "/usr/bin", "/bin"]),
        "RLSTRIDE_SLURM_PATIENCE": str(patience),
        "COUNT": str(tmp_path / "count"),
    }
    return subprocess.run([name, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False)


AWAY = 'echo x >>"$COUNT"; echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


STEP = "srun -n1 -N1 -c ${SLURM_CPUS_PER_TASK:-1} --cpu-bind=q"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            "--wrap=/py=3/bin/python -m snakemake --config 'a=$b' --local-groupid 7 --executor slurm-jobstep --jobs 1",
            f"--wrap={STEP} /py=3/bin/python -m snakemake --config 'a=$b' --local-groupid 7 --executor local --jobs 1",
        ),
        (
            "--wrap=module load x && python -m snakemake --local-groupid 7 --executor slurm-jobstep --jobs 1",
            f"--wrap=module load x && {STEP} python -m snakemake --local-groupid 7 --executor local --jobs 1",
        ),
        *[(argument, argument) for argument in ("--wrap=python -m snakemake --executor slurm-jobstep", "-J a  b")],
    ],
    ids=["group", "group after a command", "single rule", "other"],
)
def test_a_group_is_one_step_with_one_snakemake(tmp_path: Path, given: str, sent: str) -> None:
    done = call(tmp_path, "sbatch", 'printf "%s\\n" "$@"', arguments=["--parsable", given])
    assert done.stdout == f"--parsable\n{sent}\n"


@pytest.mark.parametrize("name", ["sbatch", "sinfo", "sacct", "sacctmgr", "squeue", "scancel"])
def test_what_the_real_command_says_and_how_it_ends_is_passed_on(tmp_path: Path, name: str) -> None:
    done = call(tmp_path, name, 'printf "%s\\n" "$@"; echo warned >&2; exit 3')
    assert (done.stdout, done.stderr, done.returncode) == ("a b\nc\n", "warned\n", 3)


def test_a_submission_is_made_again_while_the_controller_is_away(tmp_path: Path) -> None:
    done = call(tmp_path, "sbatch", f'if [ -e "$COUNT" ]; then echo 17; exit 0; fi; {AWAY}')
    assert (done.stdout, done.returncode) == ("17\n", 0)
    assert (tmp_path / "count").read_text() == "x\n"


def test_patience_has_an_end_and_any_other_failure_is_passed_on_at_once(tmp_path: Path) -> None:
    assert call(tmp_path, "sbatch", AWAY, patience=0).returncode == 1
    (tmp_path / "count").unlink()
    done = call(tmp_path, "sbatch", 'echo x >>"$COUNT"; echo "sbatch: error: Invalid account" >&2; exit 1')
    assert done.returncode == 1
    assert "Invalid account" in done.stderr
    assert (tmp_path / "count").read_text() == "x\n"


def test_a_cancelled_job_reads_as_the_plugin_knows_it(tmp_path: Path) -> None:
    done = call(tmp_path, "sacct", 'printf "7|CANCELLED by 1000\\n8|COMPLETED\\n9|CANCELLED\\n"')
    assert done.stdout == "7|CANCELLED\n8|COMPLETED\n9|CANCELLED\n"


def test_status_questions_are_left_to_the_plugin_to_repeat(tmp_path: Path) -> None:
    assert call(tmp_path, "sacct", AWAY).returncode == 1
    assert (tmp_path / "count").read_text() == "x\n"

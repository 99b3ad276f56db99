"""Two studies for the cluster's tests: a small one, real in every stage, and a training long enough to break."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml
from cluster import ACCOUNT, Cluster, wait_until
from pandas.testing import assert_frame_equal

from warm_start import warm_programs

ROOT = Path(__file__).parents[2]
TABLE = "results/on-slurm/tables/training.csv"
# Tables of a study that ran on a cluster are those of one that did not.
_SAME = ("accuracy", "validation", "dominance", "spectra", "dynamics", "drift", "training", "learning")
COMPARED = (
    *(f"results/on-slurm/tables/{name}.csv" for name in _SAME),
    *(f"results/on-slurm/micro/{name}/seed0/measured.done" for name in ("grpo", "frozen")),  # it holds a group together
)
TRAJECTORY = Path("results", "on-slurm", "micro", "grpo", "seed0", "trajectory")
BATCH = {"problems_per_step": 4, "completions_per_problem": 4}
QUICK = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10")


def write_study(folder: Path, **changes: object) -> Path:
    """The small study's file in a folder of its own, which becomes its working directory."""
    pretraining = {"learning_rate": 2e-3, "max_steps": 120, "cooldown_steps": 20, "target_accuracy": 0.0}
    architecture = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    study = {
        "name": "on-slurm",
        "task": "chain",
        "models": ["micro"],
        "algorithms": ["grpo"],
        "controls": ["frozen"],
        "training": {"steps": 40, "keep_every": 8, **BATCH},
        "ablation": {"variants": ["rank_1", "in_scope_full"]},
        "drift": {"at": [1.0], "variants": [], "problems": 16},
        "extrapolation": {"methods": ["last", "linear"], "windows": [0.5]},
        "evaluation": {
            "decodings": {"t1.0": {"temperature": 1.0, "samples": 1}},
            "test_problems": 32,
            "validation_problems": 32,
        },
        "define": {
            "models": {
                "micro": {
                    "model_type": "llama",
                    "stands_for": "nothing",
                    "architecture": {**architecture, "num_key_value_heads": 2, "head_dim": 16},
                    "pretraining": pretraining,
                }
            },
            "algorithms": {"grpo": {"trainer": "grpo", "learning_rate": 5e-4}},
        },
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for catalogue in ("models.yaml", "algorithms.yaml", "tasks.yaml"):
        shutil.copy(ROOT / "config" / catalogue, folder)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    return file


def write_long_study(folder: Path, **changes: object) -> Path:
    """One run and no control: some 10 s of training, of which every 20th step is kept."""
    training = {"steps": 120, "keep_every": 20, **BATCH}
    return write_study(folder, **{"controls": [], "training": training, **changes})


class Submission:
    """A Snakemake that sends a study to a cluster, in the study's folder.

    Args:
        cluster: the cluster.
        folder: the study's; bases are there already, or are made too.
        arguments: more of Snakemake's.
        warm: whether its jobs start warm: not where they are killed, or their memory is measured.
    """

    def __init__(self, cluster: Cluster, folder: Path, *arguments: str, warm: bool = False) -> None:
        self.cluster, self.folder = cluster, folder
        self._log = folder / f"snakemake-{len(list(folder.glob('snakemake-*.log')))}.log"
        with self._log.open("w") as stream:
            self.process = subprocess.Popen(
                command(*arguments, warm=warm), cwd=folder, env=cluster.environment, stdout=stream, stderr=stream
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def run(self) -> str:
        """The id under which its jobs are known."""
        found = re.search(r"SLURM run ID: (\S+)", self.said)
        assert found, self.said
        return found[1]

    def job_of(self, rule: str, longest: float = 900.0) -> str:
        """The number of the latest running job of a rule, once there is one."""
        found: list[str] = []

        def runs() -> bool:
            assert self.process.poll() is None, self.said
            found[:] = [number for number, state, about in self.cluster.jobs() if state == "RUNNING" and rule in about]
            return bool(found)

        wait_until(runs, longest, every=0.5)
        return found[-1]

    def when_training(self, step: int, cell: str = "micro/grpo/seed0", longest: float = 900.0) -> str:
        """The number of the training job, once it has kept a step."""
        job = self.job_of("train_cell", longest)  # of a study with one run
        kept = self.folder / "results" / "on-slurm" / cell / "trajectory" / f"step_{step:06d}"
        wait_until(kept.is_dir, longest)
        return job

    def wait(self, longest: float = 1800.0) -> int:
        return self.process.wait(longest)

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def command(
    *arguments: str,
    snakefile: Path = ROOT / "Snakefile",
    profile: Path = ROOT / "profiles" / "slurm",
    study: str | None = "study.yaml",
    waits: Sequence[str] = QUICK,
    resources: Sequence[str] = (),
    warm: bool = False,
) -> list[str]:
    """Snakemake with the project's own profile, and the account added.

    Args:
        arguments: targets, and options.
        snakefile: the project's, or a small one.
        profile: likewise.
        study: the config file; None of a workflow without one.
        waits: options in place of the profile's waits; by default, status is asked for sooner.
        resources: more defaults, NAME=VALUE.
        warm: whether the jobs, which are run by the same Python and the `rlstride` beside it, start warm.
    """
    return [
        *(str(warm_programs() / "python" if warm else sys.executable), "-m", "snakemake"),
        *arguments,  # before the options that take all that follows
        *("--snakefile", str(snakefile), "--profile", str(profile)),
        *(("--configfile", study) if study else ()),
        *waits,
        *("--default-resources", "mem_mb=1024", "runtime=10", f"slurm_account={ACCOUNT}", *resources),
    ]


def run_locally(folder: Path, *targets: str) -> None:
    """The same study with the local profile: what a cluster's results are compared with."""
    profile = ["--profile", str(ROOT / "profiles" / "local"), "--configfile", "study.yaml"]
    done = subprocess.run(
        [str(warm_programs() / "snakemake"), *targets, "--snakefile", str(ROOT / "Snakefile"), *profile],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


COSTS = re.compile(r"seconds|_s$|peak|rss|started|host|speed|cost")


def table(folder: Path, name: str) -> pd.DataFrame:
    """A table of the study without the columns that say what it cost."""
    found = pd.read_csv(folder / "results" / "on-slurm" / "tables" / f"{name}.csv")
    return found[[column for column in found.columns if not COSTS.search(column)]]


def assert_same_tables(folder: Path, other: Path) -> None:
    """Whether two runs of the study measured the same."""
    for name in _SAME:
        assert_frame_equal(table(folder, name), table(other, name))


def ledger(folder: Path, cell: str = "micro/grpo/seed0") -> pd.DataFrame:
    """What the trainings of a cell did, one row for each attempt that ended by itself."""
    return pd.read_json(folder / "results" / "on-slurm" / cell / "ledger" / "train.jsonl", lines=True)

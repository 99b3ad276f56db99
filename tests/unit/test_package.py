"""The package as users get it: built here, installed outside the repository, with and without its extras."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rlstride.extras import packages_of

pytestmark = pytest.mark.slow  # it builds the package twice and starts torch three times

ROOT = Path(__file__).parents[2]
EXTRAS = ("train", "evaluate", "track", "report", "workflow")
CORE = {"transformers"}  # which one of the extras needs in a later version
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
# Runs commands as the command line does, one after the other, and prints the exit status of each behind a mark.
RUN = """
import json, sys
from rlstride.cli import main
for command in json.loads(sys.argv[1]):
    print(">>>", main(command), flush=True)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist made of the repository's files, and a wheel made of that sdist."""
    root = tmp_path_factory.mktemp("built")
    source, out = root / "source", root / "out"
    skipped = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", source / "src", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run([sys.executable, "-c", BUILD, "build_sdist", str(out)], source)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(root, filter="data")
    run([sys.executable, "-c", BUILD, "build_wheel", str(out)], root / sdist.name.removesuffix(".tar.gz"))
    return out


@pytest.fixture(scope="module")
def programs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and all extras."""
    (wheel,) = built.glob("*.whl")
    return environment(tmp_path_factory.mktemp("whole") / "venv", wheel, without=set())


@pytest.fixture(scope="module")
def run_folder(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/, two steps of a run, and a task; nothing of the repository is in it."""
    root = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(small_base, root / "base")
    for step in (5, 10):
        shutil.copytree(small_base, root / f"step_{step}")
        file = root / f"step_{step}" / "model.safetensors"
        tensors = {name: tensor + 1e-3 * step * tensor.sign() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    rows = [{"question": f"{a}+1=", "choices": [str(a + 1), "0"]} for a in range(8)]
    (root / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {root}/sums.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\n"
        "doc_to_target: 0\ntarget_delimiter: ''\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return root


def run(command: list[str], cwd: Path) -> str:
    """Standard output of a command that has to succeed; nothing of this process's Python path reaches it."""
    done = output(command, cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def output(command: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=inherited | {"HF_HUB_OFFLINE": "1"})


def environment(folder: Path, wheel: Path, without: set[str]) -> Path:
    """A virtual environment with the wheel, and with all that is installed here but for some distributions.

    Returns:
        its folder of programs.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    here = Path(distribution("torch").locate_file(""))  # type: ignore[arg-type]
    left_out: set[str] = set()
    for name in without:
        left_out |= {file.parts[0] for file in distribution(name).files or []}
    for entry in here.iterdir():
        if entry.name not in left_out and "rlstride" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", str(wheel)], folder)
    return folder / "bin"


def statuses(programs: Path, commands: list[str], cwd: Path) -> tuple[list[int], list[str]]:
    """The exit status of each command, and the lines of standard error of all."""
    done = output([str(programs / "python"), "-c", RUN, json.dumps([text.split() for text in commands])], cwd)
    assert done.returncode == 0, done.stderr
    found = [int(line.removeprefix(">>> ")) for line in done.stdout.splitlines() if line.startswith(">>> ")]
    return found, done.stderr.splitlines()


def test_the_wheel_has_every_module_and_data_file_of_the_source(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    source = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src" / "rlstride").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == source
    assert {"rlstride/py.typed", "rlstride/report/page.html.j2", "rlstride/tasks/lm_eval/chain.yaml"} <= packed


def test_an_installed_wheel_takes_a_run_apart_edits_and_scores_it_from_a_folder_of_its_own(
    programs: Path, run_folder: Path
) -> None:
    assert run([str(programs / "rlstride"), "--version"], run_folder).startswith("rlstride 0.")
    assert "extrapolate" in run([str(programs / "rlstride"), "--help"], run_folder)
    found, errors = statuses(
        programs,
        [
            "ingest step_5 step_10 --base base --out full/trajectory",
            "spectra full/trajectory --out full/spectra.parquet",
            "ablate full/trajectory --rank 1 --out full/rank-1",
            "evaluate full/rank-1 --tasks sums.yaml --out full/scores.parquet",
        ],
        run_folder,
    )
    assert found == [0, 0, 0, 0], errors
    read = "import rlstride, pandas; from rlstride import Trajectory, load_study; print(rlstride.__file__); "
    read += "print(Trajectory('full/trajectory').steps, pandas.read_parquet('full/scores.parquet').n.tolist())"
    file, rest = run([str(programs / "python"), "-c", read], run_folder).splitlines()
    assert Path(file).is_relative_to(programs.parent)
    assert rest == "[5, 10] [8]"


def test_without_the_extras_a_run_is_taken_apart_and_each_other_verb_names_its_extra(
    built: Path, run_folder: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    programs = environment(tmp_path / "venv", wheel, {name for extra in EXTRAS for name in packages_of(extra)} - CORE)
    study = tmp_path / "study.yaml"
    shutil.copy(ROOT / "config" / "config.yaml", study)
    for catalogue in ("models", "algorithms", "tasks"):
        shutil.copy(ROOT / "config" / f"{catalogue}.yaml", tmp_path)
    found, errors = statuses(
        programs,
        [
            "ingest step_5 step_10 --base base --out core/trajectory",
            "spectra core/trajectory --out core/spectra.parquet",
            "ablate core/trajectory --rank 1 --out core/rank-1",
            "extrapolate core/trajectory --method linear --window 1 --out core/later",
            f"check --study {study}",
            "evaluate core/rank-1 --tasks sums.yaml --out core/scores.parquet",
            f"train --study {study} --cell tiny-llama/grpo/0 --out core/run",
            "track core",
            "report core --out core/report",
        ],
        run_folder,
    )
    assert found == [0, 0, 0, 0, 0, 2, 2, 2, 2], errors
    assert [line for line in errors if "pip install" in line] == [
        "rlstride evaluate: needs lm-eval, datasets, Jinja2, math-verify: pip install 'rlstride[evaluate]'",
        "rlstride train: needs trl, peft, accelerate, datasets, Jinja2, math-verify: pip install 'rlstride[train]'",
        "rlstride track: needs mlflow: pip install 'rlstride[track]'",
        "rlstride report: needs matplotlib, Jinja2: pip install 'rlstride[report]'",
    ]
    face = output([str(programs / "python"), "-c", "from rlstride import Trajectory, StrideCallback"], run_folder)
    assert face.returncode == 1
    assert face.stderr.splitlines()[-1].endswith("needs accelerate: pip install 'rlstride[train]'")


def test_what_needs_files_of_the_repository_says_which_are_missing(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    shutil.copy(ROOT / "config" / "config.yaml", tmp_path / "study")
    empty = tmp_path / "empty"
    empty.mkdir()
    found, errors = statuses(
        programs,
        [
            "check --study config/config.yaml",
            "cluster check",
            f"check --study {tmp_path}/study/config.yaml",
        ],
        empty,
    )
    assert found == [2, 2, 2]
    assert len(errors) == 3
    assert errors[0] == "rlstride check: config/config.yaml: there is no such file"
    assert errors[2].startswith(f"rlstride check: {tmp_path}/study/config.yaml: there is no ")

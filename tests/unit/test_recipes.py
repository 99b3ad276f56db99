"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from synthetic_study import synthetic_study, write_cells

from planted_run import SmallRun
from rlstride.config.models import TinyModel
from rlstride.study.load import load_study, resolved_yaml
from rlstride.zoo.bases import build_model
from rlstride.zoo.tokenizer import build_tokenizer
from warm_start import warm_programs

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COPIED = ("src", "config", "workflow", "profiles", "envs", "docs", "Snakefile", "pyproject.toml")
_BLOCK = re.compile(
    r"^\*\*(New file|In|At the end of)\*\* `([^`]+)`(?:, (before|after|in place of) `([^`]+)`)?:\n\n```\w+\n(.*?)^```",
    re.M | re.S,
)
_CHECK = re.compile(r"^\*\*Check\*\*.*?```bash\n(.*?)^```", re.M | re.S)
# What the table of the page promises, and the issue behind it allows.
MOST_EDITS = {
    "An algorithm": 2,
    "An extrapolation method": 2,
    "A model": 1,
    "A kind of task": 2,
    "A metric": 1,
    "A table with a figure and a claim": 5,
    "A rule": 5,
    "A checkpoint format": 2,
}


@dataclass(frozen=True)
class Edit:
    """One edit by hand."""

    how: str
    file: str
    where: str
    anchor: str
    text: str

    def make(self, root: Path) -> None:
        path = root / self.file
        if self.how == "New file":
            assert not path.exists()
            path.write_text(self.text, encoding="utf-8")
            return
        before = path.read_text(encoding="utf-8")
        if self.how == "At the end of":
            path.write_text(f"{before}\n{self.text}", encoding="utf-8")
            return
        line = f"{self.anchor}\n"
        assert before.count(line) == 1, f"{self.file}: {self.anchor}"
        after = {"before": self.text + line, "after": line + self.text, "in place of": self.text}[self.where]
        path.write_text(before.replace(line, after), encoding="utf-8")


def recipe(name: str) -> tuple[list[Edit], str]:
    """The edits of a recipe, and the commands that check them."""
    text = CONTRIBUTING.split(f"\n### {name}\n")[1].split("\n### ")[0]
    return [Edit(*match) for match in _BLOCK.findall(text)], _CHECK.findall(text)[0]


def follow(name: str, root: Path, **variables: Path | str) -> subprocess.CompletedProcess[str]:
    """Makes a recipe's edits in a copy of the repository, and runs its commands there."""
    copy = root / "copy"
    for part in COPIED:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / part)
    edits, commands = recipe(name)
    for edit in edits:
        edit.make(copy)
    path = os.pathsep.join([str(warm_programs()), str(Path(sys.executable).parent), os.environ["PATH"]])
    paths = {"PYTHONPATH": str(copy / "src"), "PATH": path, "OMP_NUM_THREADS": "1"}
    given = {key: str(value) for key, value in variables.items()} | {"OUT": str(root / "out")}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=copy,
        env=os.environ | paths | given,
        capture_output=True,
        text=True,
    )


def study_of(root: Path, task: dict[str, object], **algorithms: dict[str, object]) -> Path:
    """A study file with one model of random weights, to be made below root/results."""
    study = {
        "name": "recipe",
        "task": "mine",
        "models": ["random"],
        "algorithms": list(algorithms),
        "controls": [],
        "training": {
            **{"steps": 2, "keep_every": 1, "problems_per_step": 2, "completions_per_problem": 2},
            "reward_patience": None,  # the weights are random: nothing is right
        },
        "evaluation": {"decodings": {"t1.0": {"temperature": 1.0}}, "test_problems": 16, "validation_problems": 8},
        "results": str(root / "results"),
        "define": {"tasks": {"mine": task}, "models": {"random": MODEL}, "algorithms": algorithms},
    }
    file = root / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


MODEL: dict[str, object] = {
    "model_type": "qwen3",
    "stands_for": "random weights",
    "architecture": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
    "pretraining": {"learning_rate": 1e-3, "max_steps": 10, "target_accuracy": 0.0},
}
CHAIN = yaml.safe_load((ROOT / "config" / "tasks.yaml").read_text())["chain"]
PLAIN = {"trainer": "grpo", "learning_rate": 1e-4}


def write_model(folder: Path, alphabet: str) -> Path:
    """A model folder of random weights that reads these characters."""
    tokenizer = build_tokenizer(alphabet)
    build_model(TinyModel.model_validate(MODEL), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("name", "most"), MOST_EDITS.items())
def test_a_recipe_takes_no_more_edits_by_hand_than_it_promises(name: str, most: int) -> None:
    edits, commands = recipe(name)
    assert 0 < len(edits) <= most
    assert commands


def test_an_algorithm(tmp_path: Path) -> None:
    from rlstride.study.paths import base_folder

    plain = load_study(study_of(tmp_path, CHAIN, grpo=PLAIN))
    write_model(base_folder(plain, "random"), "0123456789+-=#TQG")
    study = study_of(tmp_path, CHAIN, bnpo={"trainer": "bnpo", "learning_rate": 1e-4})
    done = follow("An algorithm", tmp_path, STUDY=study)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "trajectory" / "manifest.json").is_file()


def test_an_extrapolation_method(small_run: SmallRun, small_base: Path, tmp_path: Path) -> None:
    done = follow("An extrapolation method", tmp_path, RUN=small_run.path)
    assert done.returncode == 0, done.stderr
    made = load_file(tmp_path / "out" / "model" / "model.safetensors")
    base, last = (load_file(folder / "model.safetensors") for folder in (small_base, small_run.path / "step_000008"))
    name = max(made, key=lambda each: made[each].numel())
    expected = base[name].double() + 0.5 * (last[name].double() - base[name].double())
    assert made[name].double().sub(expected).abs().max() < 1e-6


def test_a_model(tmp_path: Path) -> None:
    done = follow("A model", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_kind_of_task(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "01=#")
    study = study_of(tmp_path, {"kind": "parity", "bits": 12}, grpo=PLAIN)
    done = follow("A kind of task", tmp_path, STUDY=study, MODEL=model)
    assert done.returncode == 0, done.stderr


def test_a_metric(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "0123456789+-=#TQG")
    done = follow("A metric", tmp_path, STUDY=study_of(tmp_path, CHAIN, grpo=PLAIN), MODEL=model)
    assert done.returncode == 0, done.stderr
    assert "characters" in done.stdout


def test_a_table_with_a_figure_and_a_claim(tmp_path: Path) -> None:
    study = synthetic_study(models=["tiny-llama"], algorithms=["grpo"])
    write_cells(tmp_path / "results" / "demo", study)
    file = tmp_path / "study.yaml"
    file.write_text(resolved_yaml(study))
    done = follow("A table with a figure and a claim", tmp_path, RESULTS=tmp_path / "results" / "demo", STUDY=file)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "figures" / "tokens_used.png").is_file()
    copy = tmp_path / "copy" / "docs"
    assert "tokens-used.csv" in (copy / "tables.md").read_text()
    assert "rank_1_beats_base" in (copy / "claims.md").read_text()


def test_a_rule(tmp_path: Path) -> None:
    done = follow("A rule", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_checkpoint_format(small_run: SmallRun, small_base: Path, tmp_path: Path) -> None:
    run = tmp_path / "npz" / "step_10"
    run.mkdir(parents=True)
    tensors = load_file(small_run.path / "step_000008" / "model.safetensors")
    np.savez(run / "weights.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    done = follow("A checkpoint format", tmp_path, NPZ=run, BASE=small_base)
    assert done.returncode == 0, done.stderr

"""Nothing is overwritten without a word: what every verb refuses before it works, and what --force replaces."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from planted_run import SmallRun
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder
from rlstride.study.study import Study
from rlstride.tasks import build_task
from rlstride.zoo.bases import REPORT_FILE, make_base
from rlstride.zoo.tokenizer import build_tokenizer

# Of a trajectory that is not there: only what is refused before any work is refused for another reason.
TABLES = {
    "spectra": ["spectra", "nowhere"],
    "dynamics": ["dynamics", "nowhere", "--evaluations", "none.parquet"],
    "drift": ["drift", "nowhere", "--study", "{study}"],
    "evaluate on a study": ["evaluate", "nowhere", "--study", "{study}"],
    "evaluate on tasks": ["evaluate", "nowhere", "--tasks", "none"],
}


def call(words: list[str], out: Path, study: str, *flags: str) -> int:
    return main([*(word.format(study=study) for word in words), "--out", str(out), *flags])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("words", TABLES.values(), ids=TABLES)
def test_a_table_that_exists_is_refused_before_any_work_and_stays_as_it_was(
    words: list[str], tmp_path: Path, default_study_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.parquet"
    out.write_text("a table of somebody's")
    assert call(words, out, default_study_file) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.endswith(f"{out}: this table exists already; name another one, or replace it with --force")
    assert contents(tmp_path) == {"t.parquet": b"a table of somebody's"}
    assert call(words, out, default_study_file, "--force") == 2
    assert "nowhere" in capsys.readouterr().err
    assert contents(tmp_path) == {"t.parquet": b"a table of somebody's"}


@pytest.mark.parametrize("words", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("name", ["t.csv", "t", "t.parquet.gz"])
def test_a_table_is_only_written_in_the_format_that_its_name_says(
    words: list[str], name: str, tmp_path: Path, default_study_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words, tmp_path / name, default_study_file, "--force") == 2
    assert f"{name}: the table's name must end in .parquet" in capsys.readouterr().err
    assert contents(tmp_path) == {}


def test_a_table_below_a_file_or_in_place_of_a_folder_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "d.parquet").mkdir()
    assert main(["spectra", "nowhere", "--out", str(tmp_path / "notes" / "below" / "t.parquet")]) == 2
    assert "notes: this is a file, where a folder is needed" in capsys.readouterr().err
    assert main(["spectra", "nowhere", "--out", str(tmp_path / "d.parquet"), "--force"]) == 2
    assert "d.parquet: this is a folder" in capsys.readouterr().err


def test_factors_never_replace_weights_of_the_same_name(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """spectra writes model.safetensors beside model.parquet."""
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    before = contents(tmp_path)
    assert main(["spectra", str(small_run.path), "--out", str(tmp_path / "model.parquet"), "--force"]) == 2
    assert "model.safetensors: it would be overwritten, but rlstride did not write it" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "beside", "foreign"),
    [
        (TABLES["evaluate on tasks"], "t-problems.parquet", {"problem": [1], "answer": [2]}),
        (TABLES["evaluate on a study"], "t-problems.parquet", {"problem": [1], "answer": [2]}),
        (TABLES["drift"], "t-tokens.parquet", {"token": ["a"], "count": [2]}),
    ],
)
def test_a_table_of_somebodys_beside_the_table_to_come_is_refused(
    words: list[str],
    beside: str,
    foreign: dict[str, list[object]],
    tmp_path: Path,
    default_study_file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pd.DataFrame(foreign).to_parquet(tmp_path / beside)
    before = contents(tmp_path)
    assert call(words, tmp_path / "t.parquet", default_study_file, "--force") == 2
    assert f"{beside}: it would be overwritten" in capsys.readouterr().err
    (tmp_path / beside).write_text("no table at all")
    assert call(words, tmp_path / "t.parquet", default_study_file, "--force") == 2
    assert f"{beside}: it would be overwritten" in capsys.readouterr().err
    assert set(contents(tmp_path)) == set(before)


def test_factors_that_a_killed_call_left_without_their_table_are_replaced(small_run: SmallRun, tmp_path: Path) -> None:
    table, factors = tmp_path / "s.parquet", tmp_path / "s.safetensors"
    measure = ["spectra", str(small_run.path), "--out", str(table), "--rank"]
    assert main([*measure, "1"]) == 0
    table.unlink()
    assert main([*measure, "2"]) == 0
    assert {len(s) for name, s in load_file(factors).items() if name.endswith("/s")} == {2}


def test_a_table_is_replaced_with_force(small_run: SmallRun, tmp_path: Path) -> None:
    out = tmp_path / "d.parquet"
    out.write_text("an old table")
    measure = ["dynamics", str(small_run.path), "--evaluations", str(small_run.evaluations), "--out", str(out)]
    assert main(measure) == 2
    assert out.read_text() == "an old table"
    assert main([*measure, "--force"]) == 0
    assert "step_r2_later" in set(pd.read_parquet(out)["quantity"])


def test_predicted_models_that_exist_are_refused_before_any_is_written(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ["extrapolate", str(small_run.path), "--method", "last", "--out", str(tmp_path / "models"), "--window"]
    assert main([*predict, "0.4,0.6"]) == 0
    before = contents(tmp_path)
    assert main([*predict, "0.2,0.6"]) == 2
    assert "window_0.6_last: there is an edited model here already" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert main([*predict, "0.2,0.6", "--force"]) == 0
    assert {path.name for path in (tmp_path / "models").iterdir()} == {f"window_0.{n}_last" for n in (2, 4, 6)}


@pytest.fixture
def study(small_base: Path, tmp_path: Path, default_study_file: str) -> Study:
    """A study of one model that is a folder, whose tokenizer knows the task's characters."""
    source, task = shutil.copytree(small_base, tmp_path / "published"), load_study(default_study_file).task
    build_tokenizer(build_task("chain", task).alphabet).save_pretrained(source)
    content = {
        "name": "published",
        "task": "chain",
        "models": ["small"],
        "algorithms": ["grpo"],
        "training": {"steps": 5, "keep_every": 2},
        "results": str(tmp_path / "results"),
        "define": {
            "models": {"small": {"source": str(source)}},
            "tasks": {"chain": task.model_dump()},
            "algorithms": {"grpo": {"trainer": "grpo", "learning_rate": 1e-4}},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return load_study(tmp_path / "study.yaml")


def test_a_base_is_made_again_only_with_force_or_where_snakemake_took_its_report_away(
    study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "base"
    make_base(study, "small", out)
    (out / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="there is a base here already; name another one, or replace it with"):
        make_base(study, "small", out)
    assert (out / "config.json").read_text() == "{}"
    make_base(study, "small", out, force=True)
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3"
    (out / REPORT_FILE).unlink()
    make_base(study, "small", out)
    assert (out / REPORT_FILE).is_file()


def test_a_base_never_replaces_a_model_that_rlstride_did_not_make_or_an_edited_one(
    study: Study, small_run: SmallRun, small_base: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(small_base, tmp_path / "mine")
    edited = tmp_path / "edited"
    assert main(["ablate", str(small_run.path), "--rank", "1", "--out", str(edited)]) == 0
    for folder in (mine, edited):
        before = contents(folder)
        with pytest.raises(RequestError, match="this folder holds something other than a base"):
            make_base(study, "small", folder, force=True)
        assert contents(folder) == before


def test_an_edited_model_never_replaces_a_base(study: Study, small_run: SmallRun, tmp_path: Path) -> None:
    out = tmp_path / "base"
    make_base(study, "small", out)
    before = contents(out)
    assert main(["ablate", str(small_run.path), "--rank", "1", "--out", str(out), "--force"]) == 2
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("trajectory", "thesis.tex"),
        ("trajectory", "step_60/model.safetensors"),  # of another trainer
        ("training", "checkpoint-60/optimizer.pt"),
        ("training", "data.jsonl"),
    ],
)
def test_training_never_clears_a_folder_that_no_training_wrote(
    study: Study, tmp_path: Path, name: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_base(study, "small", base_folder(study, "small"))
    run = ["train", "--study", str(study.path), "--cell", "small/grpo/0", "--out", str(tmp_path / "run/trajectory")]
    kept = tmp_path / "run" / name / file
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    assert main([*run, "--force"]) == 2
    assert f"run/{name}: this folder holds something other than" in capsys.readouterr().err
    assert contents(tmp_path / "run") == {f"{name}/{file}": b"years of work"}

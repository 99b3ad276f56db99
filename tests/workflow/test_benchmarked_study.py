"""A study with benchmarks, from its YAML file to benchmarks.csv: lm-eval's tasks, a real model, nothing downloaded."""

import json
from pathlib import Path

import pandas as pd
import pytest
from pipeline import ROOT, SMOKE_STUDY, planned_jobs, snakemake, write_study
from small_model import write_small_model

pytestmark = pytest.mark.slow
SUMS = [(a, b) for a in range(3) for b in range(4)]


def write_task(folder: Path) -> Path:
    """Sums with two answers to choose from, as a task of lm-eval with a data file beside it."""
    rows = [{"q": f"{a}+{b}=", "choices": [str(a + b), str(a + b + 1)]} for a, b in SUMS]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = folder / "sums.yaml"
    file.write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'sums.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: choices\ndoc_to_target: 0\n"
        "target_delimiter: ''\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return file


def test_a_study_scores_the_models_that_it_names_on_its_benchmarks(tmp_path: Path) -> None:
    drawn = {"task": "rlstride_chain", "samples": 4, "pass_at": [1, 2], "temperature": 1.0, "limit": 16}
    named = ["base", "full", "rank_1"]
    choices = {"task": str(write_task(tmp_path)), "models": named}
    study = write_study(
        tmp_path,
        SMOKE_STUDY,
        models=["small"],
        algorithms=["sft"],  # moves the weights of a model that solves nothing
        define={"models": {"small": {"source": str(write_small_model(tmp_path / "published"))}}},
        training={"steps": 4},
        extrapolation={"windows": [], "jumps": {}},
        evaluation={"test_problems": 8, "validation_problems": 8},
        benchmarks=[drawn, choices],
        results=str(tmp_path / "results"),
    )
    table = tmp_path / "results" / "smoke" / "tables" / "benchmarks.csv"
    request = [table, "--profile", ROOT / "profiles/local", "--cores", "1", "--configfile", study]
    done = snakemake(*request, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    rows = pd.read_csv(table).set_index(["task", "measure", "variant"]).sort_index()
    assert {tuple(row) for row in rows[["study", "model", "algorithm", "seed"]].to_numpy().tolist()} == {
        ("smoke", "small", "sft", 0)
    }
    chain = {("rlstride_chain", measure) for measure in ("avg@4", "pass@1", "pass@2")}
    measured = rows[rows.metric.isin(["accuracy", "acc"])].index.tolist()
    assert set(measured) == {(*each, name) for each in chain for name in ("base", "frozen", "full")} | {
        ("sums", "avg@1", name) for name in named
    }
    assert len(measured) == len(set(measured)) == 12
    accuracy = rows[rows.metric == "accuracy"].loc["rlstride_chain"]
    assert (accuracy.n.unique().tolist(), accuracy.samples.unique().tolist()) == ([16], [4])
    assert (accuracy.decoding.unique().tolist(), accuracy["limit"].unique().tolist()) == (["t1"], [16])
    assert ((accuracy.low <= accuracy.accuracy) & (accuracy.accuracy <= accuracy.high)).all()
    sums = rows.loc[("sums", "avg@1")]
    assert sums.step.to_dict() == {"base": 0, "full": 4, "rank_1": 4}
    assert sums.gain.drop("base").tolist() == pytest.approx(
        (sums.accuracy.drop("base") - sums.accuracy["base"]).tolist()
    )
    assert planned_jobs(*request, folder=tmp_path) == {}

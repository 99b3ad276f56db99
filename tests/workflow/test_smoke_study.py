"""The smoke study through the real Snakefile, from pretraining to MLflow: what it finds, not only what it leaves."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from pipeline import planned_jobs, run, snakemake
from safetensors.torch import load_file
from smoke import Finished

from rlstride.report.figures.specs import figures_of
from rlstride.study.plan import drift_steps, kept_steps, step_folder
from rlstride.tables.specs import tables_of

pytestmark = pytest.mark.slow


def test_the_base_leaves_rl_something_to_find(finished: Finished) -> None:
    for decoding in finished.study.spec.evaluation.decodings:
        assert 0.15 < finished.accuracy("base", decoding).accuracy < 0.65


def test_rl_beats_the_frozen_control_and_the_base(finished: Finished) -> None:
    full, frozen, base = (finished.accuracy(name) for name in ("full", "frozen", "base"))
    assert full.low > max(frozen.high, base.high)
    assert full.accuracy - frozen.accuracy > 0.3


def test_a_run_that_cannot_learn_is_its_base_bit_for_bit(finished: Finished) -> None:
    frozen = finished.root / "tiny-llama" / "frozen" / "seed0" / "trajectory"
    (base,) = finished.results.glob("bases/tiny-llama-*/model.safetensors")
    last = load_file(frozen / step_folder(finished.study.spec.training.steps) / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(base).items())
    assert finished.accuracy("frozen", "greedy").accuracy == finished.accuracy("base", "greedy").accuracy


def test_in_scope_full_rank_is_the_checkpoint_in_scope_and_the_base_elsewhere(
    finished: Finished, tmp_path: Path
) -> None:
    done = run("rlstride", "ablate", finished.cell / "trajectory", "--variants", "in_scope_full", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    model = load_file(tmp_path / "in_scope_full" / "model.safetensors")
    last = finished.cell / "trajectory" / step_folder(finished.study.spec.training.steps)
    checkpoint = load_file(last / "model.safetensors")
    (folder,) = finished.results.glob("bases/tiny-llama-*/model.safetensors")
    base = load_file(folder)
    in_scope = {name for name, tensor in model.items() if ".layers." in name and tensor.ndim == 2}
    assert len(in_scope) == 7 * 3  # q, k, v, o, gate, up, down of three layers
    for name, tensor in model.items():
        if name in in_scope:
            torch.testing.assert_close(tensor, checkpoint[name], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, base[name]), name


def test_in_scope_full_rank_keeps_most_of_what_rl_gained(finished: Finished) -> None:
    """Over half of it, beyond noise: where in 0.7 to 0.9 it lies depends on the processor."""
    recovery = finished.table("recovery")
    (row,) = [row for row in recovery.itertuples() if (row.pool, row.variant) == ("rl", "in_scope_full")]
    full, in_scope, base = (finished.accuracy(name).accuracy for name in ("full", "in_scope_full", "base"))
    assert row.gain == pytest.approx((in_scope - base) / (full - base), abs=1e-4)
    assert row.gain_low > 0.5
    assert finished.accuracy("in_scope_full").low > finished.accuracy("rank_1_random").high


def test_the_rank_1_model_beats_random_directions_of_the_same_norm(finished: Finished) -> None:
    rank_1, random = finished.accuracy("rank_1"), finished.accuracy("rank_1_random")
    assert rank_1.low > random.high


def test_every_variant_is_scored_at_every_decoding_on_the_same_problems(finished: Finished) -> None:
    spec, table = finished.study.spec, finished.table("accuracy")
    names = finished.variants
    assert sorted(zip(table.variant, table.decoding, strict=True)) == sorted(
        (name, decoding) for name in names for decoding in spec.evaluation.decodings
    )
    assert set(table.n) == {spec.evaluation.test_problems}
    assert ((table.low <= table.accuracy) & (table.accuracy <= table.high)).all()
    files = [finished.cell / f"{table}-problems.parquet" for table in ("accuracy", "ablation")]
    problems = pd.concat(map(pd.read_parquet, files))
    means = problems.groupby(["variant", "decoding"]).score.mean()
    for row in table.itertuples():
        assert means[row.variant, row.decoding] == pytest.approx(row.accuracy, abs=1e-6)


def test_every_kept_step_is_in_the_validation_and_spectra_tables(finished: Finished) -> None:
    steps = kept_steps(finished.study.spec.training)
    validation, spectra = finished.table("validation"), finished.table("spectra")
    for algorithm in ("grpo", "frozen"):
        assert list(validation[validation.algorithm == algorithm].step) == [0, *steps]
    assert sorted(set(spectra.step)) == steps
    assert ((spectra.share_1 > 0) & (spectra.share_1 <= 1)).all()


def test_rl_drifts_from_the_base_and_a_run_that_cannot_learn_does_not(finished: Finished) -> None:
    drift = finished.table("drift").set_index(["algorithm", "variant", "step"])
    spec = finished.study.spec
    half, last = drift_steps(spec)
    models = [("base", 0), ("checkpoint", half), ("checkpoint", last), *((name, last) for name in spec.drift.variants)]
    assert sorted(drift.index) == sorted((name, *model) for name in ("grpo", "frozen") for model in models)
    assert set(drift.n) == {spec.drift.problems}
    divergences = ["kl_to_base", "kl_to_base_high", "kl_from_base", "kl_from_base_high", "argmax_changed"]
    assert (drift.loc["frozen", divergences] == 0).all(axis=None)
    grpo = drift.loc["grpo"]
    assert grpo.kl_to_base_low["checkpoint", half] > grpo.kl_to_base_high["rank_1_random", last]
    assert grpo.kl_to_base_low["rank_1", last] > grpo.kl_to_base_high["rank_1_random", last] > 0
    assert grpo.format_careful["checkpoint", last] > grpo.format_careful["base", 0]


def test_rl_moves_the_probability_of_the_format_markers_most(finished: Finished) -> None:
    """On chains RL picks a format that is there: what it changes is the first token."""
    tokens = finished.table("tokens")
    last = tokens[(tokens.algorithm == "grpo") & (tokens.variant == "checkpoint") & (tokens.step == tokens.step.max())]
    assert last.share.sum() == pytest.approx(1, abs=1e-4)
    assert last.nlargest(1, "share").place.item() == "first"
    assert last.nlargest(1, "share").token.item() in "TQG"
    markers = last[last.token.isin(list("TQG")) & (last.place == "first")].set_index("token")
    assert markers.change["T"] > 0


def test_edited_and_predicted_models_are_gone_once_scored(finished: Finished) -> None:
    assert not list((finished.cell / "models").glob("*/model.safetensors"))


def test_a_run_that_really_stopped_at_its_window_is_the_model_that_was_predicted_from_the_full_run(
    finished: Finished,
) -> None:
    stopped, predicted = (finished.accuracy(name, "greedy") for name in ("jump_stop", "window_0.4_alpharl"))
    assert (stopped.accuracy, stopped.step) == (predicted.accuracy, predicted.step)
    (row,) = [row for row in finished.table("jumps").itertuples() if row.decoding == "t1.0"]
    assert (row.window_step, row.last_step) == (16, 16)
    parts = row.train_seconds + row.validation_seconds + row.extrapolation_seconds
    assert row.window_seconds == pytest.approx(parts, rel=1e-4)
    assert row.saved_seconds == pytest.approx(row.full_seconds - row.window_seconds, abs=1e-5 * row.full_seconds)
    assert min(row.train_seconds, row.validation_seconds, row.extrapolation_seconds, row.window_tokens) > 0


def test_each_claim_has_a_verdict_that_its_numbers_allow(finished: Finished) -> None:
    claims = finished.table("claims")
    assert set(claims.verdict) <= {"reproduced", "not reproduced", "inconclusive", "not run"}
    learns = claims[claims.claim.str.startswith("RL learns")]
    assert len(learns) == 2
    expected = finished.accuracy("full").accuracy - finished.accuracy("base").accuracy
    assert learns.measured.iloc[0] == pytest.approx(expected, abs=1e-4)
    measured = claims[claims.measured.notna() & claims.low.notna()]
    assert ((measured.low <= measured.measured) & (measured.measured <= measured.high)).all()


def test_the_report_is_one_page_that_needs_no_other_file(finished: Finished) -> None:
    page = (finished.root / "report" / "index.html").read_text(encoding="utf-8")
    assert "data:image/svg+xml;base64," in page
    assert "<script src" not in page
    assert 'rel="stylesheet"' not in page
    figures = list((finished.root / "report" / "figures").glob("*.svg"))
    assert {figure.stem for figure in figures} == {figure.name for figure in figures_of(finished.study)}
    assert all(figure.stat().st_size > 1000 for figure in figures)


def _runs(finished: Finished) -> list[str]:
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    return sorted(run.data.tags["rlstride.key"] for run in client.search_runs([experiment.experiment_id]))


def test_mlflow_has_a_run_for_each_cell_and_variant_and_none_twice(finished: Finished) -> None:
    cell, control = "smoke/tiny-llama/grpo/0", "smoke/tiny-llama/frozen/0"
    expected = sorted(["smoke", cell, control, *(f"{cell}/{name}" for name in finished.variants)])
    assert _runs(finished) == expected
    again = run("rlstride", "track", finished.root)
    assert again.returncode == 0, again.stderr
    assert _runs(finished) == expected


def test_a_second_run_has_nothing_to_do_and_says_so(finished: Finished) -> None:
    done = snakemake(*finished.request, warm=False)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_swept_learning_rate_runs_its_own_cell_and_gathers_again(finished: Finished) -> None:
    jobs = planned_jobs(*finished.request, "sweep={grpo: {learning_rate: [3.0e-4]}}")
    assert (jobs.pop("train_cell"), jobs.pop("evaluate_variants")) == (1, 1)
    assert "pretrain_base" not in jobs
    assert jobs.pop("collect_table") == len(tables_of(finished.study))
    assert set(jobs.values()) == {1}


def test_snakemake_makes_its_own_report_with_every_table_and_figure(finished: Finished, tmp_path: Path) -> None:
    done = snakemake(*finished.request, "--report", tmp_path / "report.html", warm=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("accuracy.csv", "claims.csv", "accuracy_over_rank.svg", "index.html"):
        assert name in page


def test_every_job_leaves_its_benchmark_and_stays_within_2_gib(finished: Finished) -> None:
    files = list((finished.root / "benchmarks").rglob("*.tsv"))
    # One of each stage, a second run to train, to score its steps and to measure, and a job for each table.
    assert len(files) == 13 + 3 + len(tables_of(finished.study))
    rows = [row for file in files for row in csv.DictReader(file.open(newline=""), delimiter="\t")]
    rows = [row for row in rows if row["max_rss"] not in ("-", "NA")]  # over before Snakemake looked
    memory = [float(row["max_rss"]) for row in rows]
    assert max(memory) < 2048


def test_the_resolved_study_needs_no_catalogue(finished: Finished) -> None:
    kept = yaml.safe_load((finished.root / "study.yaml").read_text(encoding="utf-8"))
    assert set(kept["define"]["algorithms"]) == {"grpo", "frozen"}
    assert kept["results"] == str(finished.results)

"""rlstride collect: the cells' Parquet files become the study's tables."""

from pathlib import Path

import pandas as pd
import pytest
from synthetic_study import ACCURACIES, KEEP_EVERY, KINDS, STEPS, synthetic_study, write_cells

from rlstride.errors import RequestError
from rlstride.evaluation.score_tables import asked_edits, problems_file
from rlstride.ledger import append
from rlstride.stats.intervals import paired_difference_interval
from rlstride.study.paths import StudyPaths, base_folder
from rlstride.tables.collect import collect
from rlstride.tables.specs import TABLES


def table(results_dir: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(results_dir / "tables" / f"{name}.csv")


@pytest.mark.slow
def test_collecting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study)
    first = {file.name: file.read_bytes() for file in (tmp_path / "demo/tables").iterdir()}
    collect(tmp_path / "demo", study)
    second = {file.name: file.read_bytes() for file in (tmp_path / "demo/tables").iterdir()}
    assert first == second
    assert set(first) == {f"{name}.csv" for name in TABLES}


def test_edits_on_the_way_are_those_that_the_study_still_asks_for() -> None:
    names = ["in_scope_full", "rank_1", "rank_2"]
    spec = synthetic_study(ablation={"variants": names, "at": [0.5, 1.0], "on_the_way": ["rank_1"]}).spec
    scored = pd.DataFrame([{"variant": name, "step": step} for name in (*names, "full") for step in (10, 16, 20)])
    kept = asked_edits(scored, spec)
    assert set(kept.loc[kept["step"] == 20, "variant"]) == {*names, "full"}
    assert set(kept.loc[kept["step"] == 10, "variant"]) == {"rank_1", "full"}
    assert 16 not in set(kept["step"])


def test_cells_of_an_earlier_grid_stay_out_when_a_study_is_given(tmp_path: Path) -> None:
    write_cells(tmp_path / "demo", synthetic_study())
    smaller = synthetic_study(algorithms=["rloo"])
    collect(tmp_path / "demo", smaller, ["accuracy"])
    assert set(table(tmp_path / "demo", "accuracy")["algorithm"]) == {"rloo"}
    collect(tmp_path / "demo", None, ["accuracy"])
    assert set(table(tmp_path / "demo", "accuracy")["algorithm"]) == {"grpo", "rloo"}


def test_training_curves_hold_every_step_of_runs_and_controls(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["training"])
    training = table(tmp_path / "demo", "training")
    assert set(training["algorithm"]) == {"grpo", "rloo", "frozen"}
    assert len(training) == 6 * STEPS
    row = training.iloc[0]
    assert (row["step"], row["reward"], row["tokens"]) == (1, pytest.approx(0.42), 1000)


def test_other_files_beside_the_tables_stay(tmp_path: Path) -> None:
    write_cells(tmp_path / "demo", synthetic_study())
    (tmp_path / "demo" / "tables").mkdir()
    (tmp_path / "demo" / "tables" / "mine.csv").write_text("my own data")
    collect(tmp_path / "demo", synthetic_study(), ["training"])
    assert (tmp_path / "demo" / "tables" / "mine.csv").read_text() == "my own data"


def test_only_the_tables_asked_for_are_written(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["learning", "training"])
    assert {file.name for file in (tmp_path / "demo/tables").iterdir()} == {"learning.csv", "training.csv"}
    with pytest.raises(RequestError, match=r"--tables: there is no table 'spectre'; the tables are accuracy, learning"):
        collect(tmp_path / "demo", study, ["spectre"])


def test_the_learning_table_puts_each_run_beside_its_frozen_control(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["learning"])
    learning = table(tmp_path / "demo", "learning")
    assert len(learning) == len(study.cells) * len(study.spec.evaluation.decodings)
    first = learning.iloc[0]
    cell = next(cell for cell in study.cells if (cell.model, cell.algorithm) == (first["model"], first["algorithm"]))
    scores = pd.read_parquet(StudyPaths(tmp_path / "demo").cell(cell).root / "accuracy-problems.parquet")
    scores = scores[scores["decoding"] == first["decoding"]]
    full, frozen = (scores[scores["variant"] == name]["score"].to_numpy() for name in ("full", "frozen"))
    gain = paired_difference_interval(full, frozen)
    assert first["full"] == pytest.approx(full.mean(), abs=1e-5)
    assert tuple(first[["gain", "gain_low", "gain_high"]]) == pytest.approx((gain.value, gain.low, gain.high), abs=1e-5)
    assert first["learning_rate"] == study.algorithm(cell).learning_rate
    assert learning["learns"].all()


def test_a_run_that_only_matches_its_frozen_control_does_not_learn(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study, ACCURACIES | {"full": 0.35})
    collect(tmp_path / "demo", study, ["learning"])
    learning = table(tmp_path / "demo", "learning")
    assert not learning["learns"].all()
    assert (learning["learns"] == (learning["gain_low"] > 0)).all()


def test_what_was_not_scored_is_missing_from_the_learning_table(tmp_path: Path) -> None:
    study = synthetic_study(controls=[])
    write_cells(tmp_path / "demo", study, {name: ACCURACIES[name] for name in ("base", "full")})
    collect(tmp_path / "demo", study, ["learning"])
    learning = table(tmp_path / "demo", "learning")
    assert learning["frozen"].isna().all()
    assert learning["full"].notna().all()


def test_the_spectra_table_has_one_row_for_each_step_and_in_scope_matrix(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["spectra"])
    spectra = table(tmp_path / "demo", "spectra")
    assert "lm_head" not in set(spectra["kind"])
    assert len(spectra) == 4 * (STEPS // KEEP_EVERY) * 3 * len(KINDS)
    assert set(spectra["ties_1"]) == {0}


def test_the_drift_tables_have_the_steps_and_edits_that_the_study_asks_for(tmp_path: Path) -> None:
    study = synthetic_study(models=["tiny-llama"], algorithms=["grpo"])
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["drift", "tokens"])
    drift, tokens = table(tmp_path / "demo", "drift"), table(tmp_path / "demo", "tokens")
    models = [("base", 0), ("checkpoint", 4), ("checkpoint", 10), ("checkpoint", STEPS), ("rank_1", STEPS)]
    assert list(zip(drift.variant, drift.step, strict=True)) == models
    assert drift.kl_to_base.iloc[-1] == pytest.approx(2 * (ACCURACIES["full"] - ACCURACIES["base"]))
    assert len(tokens) == 2 * len(models)
    assert tokens.token.tolist()[:2] == ["T", "Q"]
    off = synthetic_study(models=["tiny-llama"], algorithms=["grpo"], drift={"at": []})
    collect(tmp_path / "demo", off, ["drift", "tokens"])
    assert table(tmp_path / "demo", "drift").empty
    assert table(tmp_path / "demo", "tokens").empty


def test_the_ledger_names_the_bases_work_too_and_seeds_stay_whole_numbers(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    entry = {"stage": "pretrain", "status": "done", "started": "2026-01-01", "seconds": 90.0, "peak_rss_mib": 500.0}
    append(tmp_path / "bases/ledger" / base_folder(study, "tiny-llama").name / "pretrain.jsonl", entry)
    collect(tmp_path / "demo", study, ["ledger"])
    lines = (tmp_path / "demo/tables/ledger.csv").read_text().splitlines()
    assert "demo,tiny-llama,,,pretrain,done,2026-01-01,90,500" in lines
    assert any(line.startswith("demo,tiny-llama,grpo,0,train,done") for line in lines)


def test_a_table_without_data_has_its_columns_and_no_row(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["dynamics"])
    dynamics = table(tmp_path / "demo", "dynamics")
    assert dynamics.empty
    assert {"model", "algorithm", "quantity", "value", "low", "high", "modules"} <= set(dynamics)


def test_a_folder_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no cell"):
        collect(tmp_path, None)


def test_columns_keep_their_contract_order(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    paths = StudyPaths(tmp_path / "demo").cell(study.cells[0])
    written = list(pd.read_parquet(paths.accuracy))
    collect(tmp_path / "demo", study, ["accuracy"])
    assert list(table(tmp_path / "demo", "accuracy")) == written


def test_the_dominance_table_puts_each_edit_beside_base_and_full_run(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["dominance", "accuracy"])
    rows = table(tmp_path / "demo", "dominance")
    assert set(rows["variant"]) == set(study.spec.ablation.variants)
    accuracies = table(tmp_path / "demo", "accuracy").set_index(["model", "algorithm", "decoding", "variant"])[
        "accuracy"
    ]
    for row in rows.query("decoding == 't1.0'").to_dict("records"):
        base, full, own = (
            accuracies[row["model"], row["algorithm"], "t1.0", name] for name in ("base", "full", row["variant"])
        )
        assert row["relative"] == pytest.approx(own / full, rel=1e-4)
        assert row["gain"] == pytest.approx((own - base) / (full - base), rel=1e-4)
        assert row["relative_low"] < row["relative"] < row["relative_high"]
        assert row["gain_low"] < row["gain"] < row["gain_high"]


def test_an_edit_on_the_way_is_compared_with_the_run_at_that_step(tmp_path: Path) -> None:
    study = synthetic_study(
        models=["tiny-llama"], algorithms=["grpo"], ablation={"variants": ["rank_1"], "at": [0.5, 1]}
    )
    write_cells(tmp_path / "demo", study)
    paths = StudyPaths(tmp_path / "demo").cell(study.cells[0])
    for file in (paths.ablation, problems_file(paths.ablation)):
        rows = pd.read_parquet(file).query("step == 20")
        reference = pd.read_parquet(paths.accuracy if file == paths.ablation else problems_file(paths.accuracy))
        on_the_way = [rows[rows["variant"] == "rank_1"], reference[reference["variant"] == "full"]]
        pd.concat([rows, *(part.assign(step=10) for part in on_the_way)]).to_parquet(file)
    collect(tmp_path / "demo", study, ["dominance", "recovery"])
    rows = table(tmp_path / "demo", "dominance").query("variant == 'rank_1' and decoding == 't1.0'")
    assert list(rows["step"]) == [10, 20]
    assert rows["gain"].iloc[0] == rows["gain"].iloc[1]  # both were given the same scores
    assert "full" not in set(table(tmp_path / "demo", "dominance")["variant"])
    pooled = table(tmp_path / "demo", "recovery").query("pool == 'rl' and variant == 'rank_1'")
    assert pooled["gain"].item() == pytest.approx(rows["gain"].iloc[1], rel=1e-3), "claims are about the last step"


def test_the_recovery_table_pools_runs_by_algorithm_and_by_model(tmp_path: Path) -> None:
    study = synthetic_study(algorithms=["grpo", "rloo", "sft"], seeds=[0, 1])
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["recovery"])
    rows = table(tmp_path / "demo", "recovery").query("variant == 'rank_1'").set_index(["pool", "of"])
    assert rows["cells"].to_dict() == {
        ("rl", "all"): 8,
        ("algorithm", "grpo"): 4,
        ("algorithm", "rloo"): 4,
        ("supervised", "sft"): 4,
        ("model", "tiny-qwen3"): 4,
        ("model", "tiny-llama"): 4,
    }
    base, full, rank_1, random = (ACCURACIES[name] for name in ("base", "full", "rank_1", "rank_1_random"))
    truths = {"relative": rank_1 / full, "gain": (rank_1 - base) / (full - base), "over_random": rank_1 - random}
    for row in rows.to_dict("records"):
        for name, truth in truths.items():
            # One of twenty such intervals misses the truth: twice as wide, none should.
            assert abs(row[name] - truth) < row[f"{name}_high"] - row[f"{name}_low"]


def test_edits_that_a_study_no_longer_asks_for_are_left_out(tmp_path: Path) -> None:
    write_cells(tmp_path / "demo", synthetic_study())
    study = synthetic_study(ablation={"variants": []})
    collect(tmp_path / "demo", study, ["accuracy", "dominance", "recovery"])
    assert set(table(tmp_path / "demo", "accuracy")["variant"]) >= {"base", "full"}
    assert not set(table(tmp_path / "demo", "accuracy")["variant"]) & {"rank_1", "in_scope_full"}
    assert table(tmp_path / "demo", "dominance").empty
    assert table(tmp_path / "demo", "recovery").empty

"""rlstride collect: the cells' Parquet files become the study's tables."""

from pathlib import Path

import pandas as pd
import pytest
from synthetic_study import ACCURACIES, KEEP_EVERY, KINDS, STEPS, synthetic_study, write_cells

from rlstride.errors import RequestError
from rlstride.evaluation.intervals import paired_difference_interval
from rlstride.report.collect import TABLES, collect
from rlstride.study.paths import StudyPaths, base_folder
from rlstride.tracking.ledger import append


def table(results_dir: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(results_dir / "tables" / f"{name}.csv")


def test_collecting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study)
    first = {file.name: file.read_bytes() for file in (tmp_path / "demo/tables").iterdir()}
    collect(tmp_path / "demo", study)
    second = {file.name: file.read_bytes() for file in (tmp_path / "demo/tables").iterdir()}
    assert first == second
    assert set(first) == {f"{name}.csv" for name in TABLES}


def test_cells_of_an_earlier_grid_stay_out_when_a_study_is_given(tmp_path: Path) -> None:
    write_cells(tmp_path / "demo", synthetic_study())
    smaller = synthetic_study(algorithms=["rloo"])
    collect(tmp_path / "demo", smaller)
    assert set(table(tmp_path / "demo", "accuracy")["algorithm"]) == {"rloo"}
    collect(tmp_path / "demo", None)
    assert set(table(tmp_path / "demo", "accuracy")["algorithm"]) == {"grpo", "rloo"}


def test_training_curves_hold_every_step_of_runs_and_controls(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study)
    training = table(tmp_path / "demo", "training")
    assert set(training["algorithm"]) == {"grpo", "rloo", "frozen"}
    assert len(training) == 6 * STEPS
    row = training.iloc[0]
    assert (row["step"], row["reward"], row["tokens"]) == (1, pytest.approx(0.42), 1000)


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
    collect(tmp_path / "demo", study)
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
    collect(tmp_path / "demo", study)
    spectra = table(tmp_path / "demo", "spectra")
    assert "lm_head" not in set(spectra["kind"])
    assert len(spectra) == 4 * (STEPS // KEEP_EVERY) * 3 * len(KINDS)
    assert set(spectra["ties_1"]) == {0}


def test_the_ledger_names_the_bases_work_too_and_seeds_stay_whole_numbers(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    entry = {"stage": "pretrain", "status": "done", "started": "2026-01-01", "seconds": 90.0, "peak_rss_mib": 500.0}
    append(tmp_path / "bases/ledger" / base_folder(study, "tiny-llama").name / "pretrain.jsonl", entry)
    collect(tmp_path / "demo", study)
    lines = (tmp_path / "demo/tables/ledger.csv").read_text().splitlines()
    assert "demo,tiny-llama,,,pretrain,done,2026-01-01,90,500" in lines
    assert any(line.startswith("demo,tiny-llama,grpo,0,train,done") for line in lines)


def test_a_table_without_data_has_its_columns_and_no_row(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study)
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
    collect(tmp_path / "demo", study)
    assert list(table(tmp_path / "demo", "accuracy")) == written

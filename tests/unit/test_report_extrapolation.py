"""What predicted models keep and save: extrapolation.csv and the table pooled over cells."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from synthetic_study import ACCURACIES, PROBLEMS, synthetic_study, write_cells

from rlstride.extrapolation.registry import METHODS
from rlstride.ledger import append
from rlstride.report.figures.drawing import Drawing, Tables
from rlstride.report.figures.extrapolation import (
    FAMILIES,
    draw_accuracy_over_window,
    draw_gain_over_cost,
    draw_gain_over_window,
)
from rlstride.stats.intervals import paired_difference_interval, ratio_interval, recovered_gain_interval
from rlstride.study.paths import StudyPaths
from rlstride.study.study import Study
from rlstride.tables.collect import collect
from rlstride.tables.costs import window_costs
from rlstride.tables.results import CellResults


def written(results: Path, study: Study, name: str = "extrapolation") -> pd.DataFrame:
    write_cells(results, study)
    collect(results, study, [name])
    return pd.read_csv(results / "tables" / f"{name}.csv")


@pytest.fixture
def one() -> Study:
    return synthetic_study(models=["tiny-llama"], algorithms=["grpo"])


def test_every_applicable_window_method_and_decoding_of_a_cell_has_a_row(tmp_path: Path, one: Study) -> None:
    table = written(tmp_path / "demo", one)
    table = table[table["not_applicable"].isna()]
    assert len(table) == 5 * 3  # last and linear at 0.2 and 0.4, AlphaRL at 0.4; at three decodings
    assert set(table["n"]) == {PROBLEMS}
    assert dict(zip(table["window"], table["step"], strict=True)) == {0.2: 4, 0.4: 8}


def test_a_predicted_model_stands_beside_floor_base_and_full_run_on_the_same_problems(
    tmp_path: Path, one: Study
) -> None:
    table = written(tmp_path / "demo", one)
    [row] = table.query("window == 0.4 and method == 'linear' and decoding == 't1.0'").to_dict("records")
    problems = pd.read_parquet(StudyPaths(tmp_path / "demo").cell(one.cells[0]).root / "accuracy-problems.parquet")
    problems = problems[problems["decoding"] == "t1.0"]
    own, last, base, full = (
        problems[problems["variant"] == name].sort_values("problem")["score"].to_numpy()
        for name in ("window_0.4_linear", "window_0.4_last", "base", "full")
    )
    for name, interval in {
        "relative": ratio_interval(own, full),
        "gain": recovered_gain_interval(own, base, full),
        "over_last": paired_difference_interval(own, last),
    }.items():
        expected = (interval.value, interval.low, interval.high)
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(expected, rel=1e-5)
    assert (row["last"], row["base"], row["full"]) == pytest.approx((last.mean(), base.mean(), full.mean()), rel=1e-5)


def test_costs_have_the_looks_of_methods_that_look_and_every_fit(tmp_path: Path, one: Study) -> None:
    table = written(tmp_path / "demo", one).query("window == 0.4 and decoding == 't1.0'").set_index("method")
    # 1 s and 1,000 tokens a step; 20 steps, 8 of them seen; 4 looks of 0.5 s and 4,000 tokens; a fit of 0.5 s.
    linear, alpharl = table.loc["linear"], table.loc["alpharl"]
    assert (linear["train_seconds"], linear["validation_seconds"], linear["fit_seconds"]) == (8, 0, 0.5)
    assert (alpharl["train_seconds"], alpharl["validation_seconds"], alpharl["fit_seconds"]) == (8, 2, 0.5)
    assert linear["seconds_speed_up"] == pytest.approx(20 / 8.5, rel=1e-5)
    assert alpharl["seconds_speed_up"] == pytest.approx(20 / 10.5, rel=1e-5)
    assert (linear["tokens_speed_up"], alpharl["tokens_speed_up"]) == pytest.approx((20 / 8, 20 / 24), rel=1e-5)
    assert set(table["steps_speed_up"]) == {20 / 8}


def test_a_fit_that_was_done_again_counts_once_and_one_that_failed_never(tmp_path: Path, one: Study) -> None:
    write_cells(tmp_path / "demo", one)
    paths = StudyPaths(tmp_path / "demo").cell(one.cells[0])
    entry = {"stage": "extrapolate", "method": "linear", "window": 0.4, "tokens": 500}
    append(paths.ledger / "extrapolate.jsonl", entry | {"status": "done", "started": "2026-01-02", "seconds": 2.0})
    append(paths.ledger / "extrapolate.jsonl", entry | {"status": "failed", "started": "2026-01-03", "seconds": 9.0})
    costs = window_costs(CellResults(one.cells[0], paths, one), 0.4, "linear", "t1.0")
    assert (costs["fit_seconds"], costs["fit_tokens"]) == (2.0, 500)
    assert (costs["window_seconds"], costs["window_tokens"]) == (8 + 2, 8000 + 500)


def test_what_a_run_did_not_record_leaves_its_speed_up_open(tmp_path: Path, one: Study) -> None:
    write_cells(tmp_path / "demo", one)
    paths = StudyPaths(tmp_path / "demo").cell(one.cells[0])
    (paths.ledger / "extrapolate.jsonl").unlink()
    costs = window_costs(CellResults(one.cells[0], paths, one), 0.4, "linear", "t1.0")
    assert (costs["full_steps"], costs["window_steps"], costs["full_seconds"]) == (20, 8, 20)
    assert not {"fit_seconds", "window_seconds"} & set(costs)
    assert window_costs(CellResults(one.cells[0], paths, one), 0.05, "linear", "t1.0") == {}


def test_a_method_that_a_window_is_too_short_for_has_a_row_that_says_so(tmp_path: Path) -> None:
    asked = {"methods": ["last", "alpharl"], "windows": [0.2, 0.4]}
    study = synthetic_study(models=["tiny-llama"], algorithms=["grpo"], extrapolation=asked)
    table = written(tmp_path / "demo", study)
    [row] = table.query("window == 0.2 and method == 'alpharl'").to_dict("records")
    assert row["not_applicable"] == "alpharl needs 3 kept steps in its window; the window 0.2 holds 2"
    assert pd.isna(row["accuracy"])
    assert table.loc[table["accuracy"].notna(), "not_applicable"].isna().all()


def test_pools_are_those_of_the_recovery_table_and_keep_what_was_planted(tmp_path: Path) -> None:
    study = synthetic_study(algorithms=["grpo", "rloo", "sft"], seeds=[0, 1])
    table = written(tmp_path / "demo", study, "extrapolation-pooled")
    rows = table.query("window == 0.4 and method == 'alpharl'").set_index(["pool", "of"])
    assert rows["cells"].to_dict() == {
        ("rl", "all"): 8,
        ("algorithm", "grpo"): 4,
        ("algorithm", "rloo"): 4,
        ("supervised", "sft"): 4,
        ("model", "tiny-qwen3"): 4,
        ("model", "tiny-llama"): 4,
    }
    base, full, last, own = (ACCURACIES[name] for name in ("base", "full", "window_0.4_last", "window_0.4_alpharl"))
    truths = {"relative": own / full, "gain": (own - base) / (full - base), "over_last": own - last}
    for row in rows.to_dict("records"):
        for name, truth in truths.items():
            assert abs(row[name] - truth) < row[f"{name}_high"] - row[f"{name}_low"]
        assert row["seconds_speed_up"] == pytest.approx(20 / 10.5, rel=1e-5)
    assert not rows["oracle"].any()


def test_a_study_without_predictions_has_an_empty_table(tmp_path: Path) -> None:
    study = synthetic_study(models=["tiny-llama"], algorithms=["grpo"], extrapolation={"methods": []})
    for name in ("extrapolation", "extrapolation-pooled"):
        table = written(tmp_path / "demo", study, name)
        assert table.empty
        assert {"window", "method", "gain", "seconds_speed_up"} <= set(table)


@pytest.mark.parametrize("draw", [draw_gain_over_window, draw_gain_over_cost])
def test_a_method_is_drawn_over_window_and_cost_beside_rl_that_stops(
    tmp_path: Path, draw: Callable[[Tables, Study], Drawing | None]
) -> None:
    asked = {"methods": ["last", "linear", "alpharl", "alpharl_oracle"], "windows": [0.2, 0.4]}
    study = synthetic_study(extrapolation=asked)
    oracle = {"window_0.4_alpharl_oracle": 0.9}
    write_cells(tmp_path / "demo", study, {**ACCURACIES, **oracle})
    collect(tmp_path / "demo", study, ["extrapolation-pooled"])
    table = pd.read_csv(tmp_path / "demo" / "tables" / "extrapolation-pooled.csv")
    drawing = draw({"extrapolation-pooled": table}, study)
    assert drawing is not None
    titles = [axes.get_title() for axes in drawing.figure.axes if axes.get_visible()]
    assert titles == ["linear", "alpharl", "alpharl_oracle (told the full accuracy)"]
    linear = drawing.data[drawing.data["method"] == "linear"].sort_values("window")
    # Steps 4 and 8 of 20 were seen; 1 s a step, and a fit of 0.5 s.
    expected = [20, 40] if draw is draw_gain_over_window else [100 * 4.5 / 20, 100 * 8.5 / 20]
    assert linear["place"].tolist() == pytest.approx(expected, rel=1e-4)
    [stopped] = [line for line in drawing.figure.axes[0].lines if line.get_label() == "RL that stops there"]
    assert list(stopped.get_xdata())[::3] == [0, 100]
    assert list(stopped.get_ydata())[::3] == [0, 1]
    assert draw({"extrapolation-pooled": table.iloc[:0]}, study) is None


def test_every_method_but_the_floor_is_of_one_kind() -> None:
    named = [name for names in FAMILIES.values() for name in names]
    assert sorted(named) == sorted(set(METHODS) - {"last"})


def test_methods_of_one_kind_share_a_row_of_panels_with_the_windows_last_step(tmp_path: Path) -> None:
    study = synthetic_study(extrapolation={"methods": ["last", "linear", "alpharl"], "windows": [0.2, 0.4]})
    write_cells(tmp_path / "demo", study)
    collect(tmp_path / "demo", study, ["extrapolation-pooled", "accuracy"])
    tables = {
        name: pd.read_csv(tmp_path / "demo" / "tables" / f"{name}.csv") for name in ("extrapolation-pooled", "accuracy")
    }
    drawing = draw_accuracy_over_window(tables, study)
    assert drawing is not None
    # Rows of panels: linear, then AlphaRL; columns: the two models.
    shown = [{str(line.get_label()): list(line.get_ydata()) for line in axes.lines} for axes in drawing.figure.axes]
    references = {"full run (test)", "base (test)"}
    assert [set(panel) - references for panel in shown] == [{"last", "linear"}] * 2 + [{"last", "alpharl"}] * 2
    pooled = tables["extrapolation-pooled"]
    for panel, model in zip(shown[:2], study.models, strict=True):
        rows = pooled[(pooled["of"] == model) & (pooled["method"] == "linear")].sort_values("window")
        assert panel["linear"] == rows["accuracy"].tolist()
        assert panel["last"] == shown[shown.index(panel) + 2]["last"]
    assert len(shown[2]["alpharl"]) == 1  # its window of 0.2 holds too few kept steps
    assert draw_accuracy_over_window(tables | {"extrapolation-pooled": pooled.iloc[:0]}, study) is None

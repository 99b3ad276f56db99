"""What striding saves: a striding run beside its plain twin, in the pipeline's tables and in the benchmark alike."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_study import striding_study, synthetic_study, write_striding_cells

from rlstride.evaluation.score_tables import problems_file
from rlstride.ledger import append, read_ledger
from rlstride.report.figures.strides import draw_stride_over_seconds, draw_stride_over_steps
from rlstride.report.findings import stride_finding
from rlstride.report.page import write_report
from rlstride.stats.intervals import paired_difference_interval
from rlstride.study.paths import StudyPaths
from rlstride.study.stride_pairs import stride_pairs_of
from rlstride.study.study import Study
from rlstride.tables.collect import collect, empty_table
from rlstride.tables.results import StudyResults
from rlstride.tables.specs import tables_of
from rlstride.tables.strides import compare, compare_ends, progress, reach, searches, summarised
from rlstride.trajectory.manifest import read_manifest
from scripts import script

stride = script("experiments", "stride")


def run(*accuracies: float, seconds: float = 2, tokens: float = 5) -> pd.DataFrame:
    """A run that keeps every tenth step: accuracies that rise, seconds and tokens of a step."""
    steps = np.arange(0.0, 10.0 * len(accuracies), 10.0)
    measured = pd.Series(accuracies, dtype=float)
    return pd.DataFrame(
        {
            "step": steps,
            "seconds": seconds * steps,
            "tokens": tokens * steps,
            "accuracy": measured,
            "monotone": measured,
        }
    )


def test_an_accuracy_between_two_kept_steps_is_reached_between_them() -> None:
    assert reach(run(0.4, 0.5, 0.9), 0.6) == {"step": 12.5, "seconds": 25.0, "tokens": 62.5}


def test_an_accuracy_is_reached_where_it_is_first_had() -> None:
    assert reach(run(0.4, 0.8, 0.8, 0.8), 0.8)["step"] == 10.0


def test_an_accuracy_that_is_never_had_takes_for_ever() -> None:
    assert reach(run(0.4, 0.5), 0.6)["step"] == math.inf


def test_an_accuracy_that_the_base_has_takes_no_step() -> None:
    assert reach(run(0.4, 0.5), 0.4)["step"] == 0.0


def test_a_run_is_compared_by_what_it_takes_to_plain_rls_last_accuracy() -> None:
    # 0.4 to 0.8 in 40 steps against 20; a step of the striding run takes 3 s instead of 2, and as many tokens.
    found = compare(run(0.4, 0.5, 0.6, 0.7, 0.8), run(0.4, 0.7, 0.8, 0.9, 0.9, seconds=3))
    assert (found["base"], found["goal"], found["steps"], found["stride_steps"]) == (0.4, 0.8, 40, 20)
    assert (found["steps_ratio"], found["seconds_ratio"], found["tokens_ratio"]) == (0.5, 0.75, 0.5)
    # Half of the gain is 0.6, after 20 steps and after 20/3; 0.8 of it 0.72, after 32 and 12; 0.9 of it 0.76.
    earlier = [found[f"steps_ratio_{share}"] for share in (0.5, 0.8, 0.9)]
    assert earlier == pytest.approx([1 / 3, 12 / 32, 16 / 36])


def test_a_run_that_never_gets_there_has_infinite_ratios_but_those_of_what_it_reaches() -> None:
    found = compare(run(0.4, 0.6, 0.8), run(0.4, 0.7, 0.7))
    assert found["steps_ratio"] == found["seconds_ratio"] == found["steps_ratio_0.8"] == math.inf
    assert found["steps_ratio_0.5"] == pytest.approx((10 * 0.2 / 0.3) / 10)


def test_where_plain_rl_gains_nothing_there_is_nothing_to_take_a_share_of() -> None:
    found = compare(run(0.4, 0.4), run(0.4, 0.5))
    assert math.isnan(found["steps_ratio"])
    assert math.isnan(found["steps_ratio_0.5"])


def test_last_accuracies_are_compared_problem_by_problem() -> None:
    plain, striding = np.array([0.0, 0.5, 1.0, 0.5]), np.array([0.5, 0.5, 1.0, 1.0])
    found = compare_ends(plain, striding)
    expected = paired_difference_interval(striding, plain)
    assert (found["end"], found["stride_end"]) == (0.5, 0.75)
    assert (found["end_difference"], found["end_difference_low"]) == (0.25, expected.low)


def test_a_summary_counts_who_never_gets_there_and_who_ends_lower_beyond_noise() -> None:
    ratios = ["steps_ratio", "seconds_ratio", "tokens_ratio", "steps_ratio_0.5", "steps_ratio_0.8", "steps_ratio_0.9"]
    table = pd.DataFrame({name: [0.5, math.inf, 0.9, math.nan] for name in ratios})
    table = table.assign(search_share=[0.1, 0.2, 0.3, 0.4], end_difference=[0.1, -0.1, -0.1, math.nan])
    told = summarised(table.assign(end_difference_high=[0.2, -0.05, 0.05, math.nan]))
    assert (told["pairs"], told["never"], told["ends"], told["lower"]) == (3, 1, 3, 1)
    assert (told["steps_ratio"], told["steps_ratio_worst"], told["search_share"]) == (0.9, math.inf, 0.25)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two pairs of runs below ``tmp_path``/demo, of 20 steps: 1 s and 1,000 tokens a step."""
    return write_striding_cells(tmp_path / "demo")


def table(results: Path, study: Study, name: str) -> pd.DataFrame:
    collect(results, study, [name])
    return pd.read_csv(results / "tables" / f"{name}.csv")


def test_the_steps_of_a_run_stand_with_their_cost_as_measured_and_made_monotone(tmp_path: Path, study: Study) -> None:
    paths = StudyPaths(tmp_path / "demo").cell(study.cells[0])
    scored = pd.DataFrame({"step": [4, 0, 2], "accuracy": [0.5, 0.4, 0.6], "low": 0.3, "high": 0.7})
    found = progress(scored, read_manifest(paths.trajectory))
    assert found["step"].tolist() == found["seconds"].tolist() == [0, 2, 4]
    assert found["tokens"].tolist() == [0, 2000, 4000]
    assert found["accuracy"].tolist() == [0.4, 0.6, 0.5]
    assert found["monotone"].tolist() == pytest.approx([0.4, 0.55, 0.55])  # the two that fall, at their mean


def test_every_pair_has_a_row_whose_ends_are_of_test_problems(tmp_path: Path, study: Study) -> None:
    found = table(tmp_path / "demo", study, "strides")
    assert found["algorithm"].tolist() == ["grpo", "grpo"]
    assert found["model"].tolist() == ["tiny-qwen3", "tiny-llama"]
    for row, twins in zip(found.to_dict("records"), stride_pairs_of(study), strict=True):
        # Both cost the same, so that seconds and tokens are saved as steps are; the striding run learns twice as fast.
        assert row["steps_ratio"] == pytest.approx(row["seconds_ratio"], rel=1e-5)
        assert row["steps_ratio"] == pytest.approx(row["tokens_ratio"], rel=1e-5)
        assert 0.3 < row["steps_ratio_0.5"] < 0.7
        assert (row["jumps"], row["jumps_taken_back"], row["searches"]) == (4, 1, 9)
        assert row["search_share"] == 0.1  # 2 of 20 s
        plain, striding = (
            pd.read_parquet(problems_file(StudyPaths(tmp_path / "demo").cell(cell).accuracy)) for cell in twins.cells
        )
        ends = [
            frame.query("variant == 'full' and decoding == 't1.0'")["score"].to_numpy() for frame in (plain, striding)
        ]
        expected = compare_ends(*ends)
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_the_progress_table_has_both_runs_of_every_pair_under_plain_rls_name(tmp_path: Path, study: Study) -> None:
    found = table(tmp_path / "demo", study, "stride-progress")
    runs = found.groupby(["model", "algorithm", "seed", "stride"])["step"].apply(list)
    assert len(runs) == 4
    assert all(steps == list(range(0, 21, 2)) for steps in runs)
    assert (found["low"] <= found["accuracy"]).all()
    assert (found["accuracy"] <= found["high"]).all()
    read_off = found.query("model == 'tiny-llama' and not stride")["monotone"].iloc[-1]
    strides = table(tmp_path / "demo", study, "strides").query("model == 'tiny-llama'")
    assert strides["goal"].iloc[0] == read_off


def test_a_pair_of_which_one_run_is_missing_has_no_row_and_unscored_ends_stay_open(
    tmp_path: Path, study: Study
) -> None:
    first, second = stride_pairs_of(study)
    StudyPaths(tmp_path / "demo").cell(first.striding).validation.unlink()
    problems_file(StudyPaths(tmp_path / "demo").cell(second.plain).accuracy).unlink()
    found = table(tmp_path / "demo", study, "strides")
    assert found["model"].tolist() == ["tiny-llama"]
    assert found["steps_ratio"].notna().all()
    assert found["end_difference"].isna().all()


def test_a_study_without_twins_has_empty_tables_which_its_pipeline_leaves_out(tmp_path: Path, study: Study) -> None:
    plain = synthetic_study(algorithms=["grpo"])
    assert not {"strides", "stride-progress"} & set(tables_of(plain))
    assert {"strides", "stride-progress"} <= set(tables_of(study))
    for name, column in (("strides", "steps_ratio"), ("stride-progress", "monotone")):
        found = table(tmp_path / "demo", plain, name)
        assert found.empty
        assert column in found


def test_searches_are_those_of_the_last_training_that_finished(tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path).cell(stride_pairs_of(write_striding_cells(tmp_path))[0].striding)
    entry = {"stage": "train", "started": "2026-02-01", "searches": 5, "jumps": 2, "jumps_taken_back": 0}
    append(paths.ledger / "train.jsonl", entry | {"status": "done", "search_seconds": 4.0})
    append(paths.ledger / "train.jsonl", entry | {"status": "failed", "search_seconds": 9.0, "started": "2026-02-02"})
    assert searches(read_ledger(paths.ledger), 16.0) == {
        "jumps": 2,
        "jumps_taken_back": 0,
        "searches": 5,
        "search_share": 0.25,
    }
    (paths.ledger / "train.jsonl").unlink()
    assert searches(read_ledger(paths.ledger), 16.0) == {}


def test_both_runs_of_a_pair_are_drawn_at_the_mean_of_their_seeds() -> None:
    study = striding_study(models=["tiny-llama"], seeds=[0, 1])
    runs = [
        run(0.4, 0.6, 0.8, seconds=2 + seed).assign(stride=jumps, seed=seed)
        for seed in (0, 1)
        for jumps in (False, True)
    ]
    frame = pd.concat(runs).assign(model="tiny-llama", algorithm="grpo", decoding="t1.0")
    frame = frame.assign(low=frame["accuracy"] - 0.1 * frame["seed"], high=frame["accuracy"] + 0.05)
    for draw, places in ((draw_stride_over_steps, [0, 10, 20]), (draw_stride_over_seconds, [0, 25, 50])):
        drawing = draw({"stride-progress": frame}, study)
        assert drawing is not None
        lines = {str(line.get_label()): line for line in drawing.figure.axes[0].lines}
        for name in ("plain RL", "with strides"):
            assert list(lines[name].get_xdata()) == places
            assert list(lines[name].get_ydata()) == [0.4, 0.6, 0.8]
        assert next(iter(lines["plain RL's last accuracy, made monotone"].get_ydata())) == 0.8
        assert drawing.data["low"].tolist() == pytest.approx([0.3, 0.5, 0.7] * 2)
        assert draw({"stride-progress": frame.iloc[:0]}, study) is None


@pytest.mark.slow
def test_the_report_says_what_striding_saves_and_shows_it(tmp_path: Path) -> None:
    study, results = write_striding_cells(tmp_path / "demo", models=["tiny-llama"]), tmp_path / "demo"
    collect(results, study, tables_of(study))
    write_report(results, study, results / "report")
    page = (results / "report/index.html").read_text()
    [row] = pd.read_csv(results / "tables/strides.csv").to_dict("records")
    section = page[page.index("<h2>Skipping steps</h2>") : page.index("<h2>Figures</h2>")]
    assert f"In the median of 1 pair of runs the striding one takes {row['steps_ratio']:.2f} of plain RL" in section
    assert f"{row['steps_ratio_0.5']:.2f} of the steps to half of its gain; 0 of 1 end lower" in section
    assert f"{row['end_difference']:.3f}" in section
    for name in ("stride_over_steps", "stride_over_seconds"):
        drawn = pd.read_csv(results / f"report/figures/{name}.csv")
        assert len(drawn) == 2 * 11  # of two runs the base and ten kept steps


def test_a_sentence_says_who_never_gets_there_and_whose_ends_are_unknown() -> None:
    ratios = ["steps_ratio", "seconds_ratio", "tokens_ratio", "steps_ratio_0.5", "steps_ratio_0.8", "steps_ratio_0.9"]
    table = pd.DataFrame({name: [0.5, math.inf, 0.9] for name in ratios}).assign(search_share=0.1)
    text = stride_finding(table.assign(end_difference=math.nan, end_difference_high=math.nan))
    assert "In the median of 3 pairs of runs the striding one takes 0.90 of plain RL's steps" in text
    assert "accuracy (1 of them not in as many steps)" in text
    assert text.endswith("their ends were not scored on test problems.")
    assert stride_finding(empty_table("strides")).startswith("No striding run stands beside a plain one")


def test_the_benchmark_finds_what_the_table_finds_from_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_striding_cells(tmp_path / "demo")
    # The benchmark scores every kept step on the problems that it compares the ends on.
    for cell in study.cells:
        paths = StudyPaths(tmp_path / "demo").cell(cell)
        for part in (lambda path: path, problems_file):
            frame = pd.read_parquet(part(paths.validation))
            frame[frame["decoding"] == "t1.0"].to_parquet(part(stride.progress_file(paths)))
    monkeypatch.setattr(stride, "study_paths", lambda study: StudyPaths(tmp_path / "demo"))
    curves = {twins: [stride.progress_of(study, cell) for cell in twins.cells] for twins in stride_pairs_of(study)}
    rows = pd.DataFrame([stride.compare_twins(study, twins, *runs) for twins, runs in curves.items()])
    tabled = table(tmp_path / "demo", study, "strides")
    same = [name for name in rows if not name.startswith(("end", "stride_end", "task", "model", "algorithm"))]
    assert rows[same].to_numpy(float) == pytest.approx(tabled[same].to_numpy(float), rel=1e-5)
    assert rows["end_difference"].to_numpy() == pytest.approx((rows["stride_end"] - rows["end"]).to_numpy())
    assert stride.summary(rows)["cells"].tolist() == [2]


def test_the_table_of_levels_has_a_row_for_each_run_with_its_rule(tmp_path: Path) -> None:
    study = write_striding_cells(tmp_path / "demo")
    levels, results = script("experiments", "stride_levels"), StudyResults(tmp_path / "demo", study)
    rows = pd.DataFrame([levels.row_of(results, cell) for cell in study.cells])
    striding = rows[rows["rule"] == "alpha-investing, 0.25"]
    assert len(striding) == len(rows) / 2
    assert set(striding["jumps"]) == {4}
    scored = results.of(study.cells[0]).validation.query("decoding == 't1.0'").sort_values("step")
    assert rows["accuracy_1"].iloc[0] == scored["accuracy"].iloc[-1]
    assert (rows["accuracy_0.25"] < rows["accuracy_1"]).all()

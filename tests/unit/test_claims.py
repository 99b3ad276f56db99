"""The claims table: verdicts by the rules of docs/claims.md."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_study import ACCURACIES, synthetic_study, write_cells, write_dynamics, write_rounding

from rlstride.claims import verdicts
from rlstride.claims.table import claims_table
from rlstride.ledger import append
from rlstride.spectra.gaussian import gaussian_share
from rlstride.stats.intervals import Interval, ratio_interval
from rlstride.stats.pooling import difference, mean_of, pooled_interval, recovered_gain, relative
from rlstride.study.paths import StudyPaths
from rlstride.study.study import Cell, Study
from rlstride.tables.results import StudyResults


def claims_of(tmp_path: Path, study: Study | None = None, **accuracies: float) -> pd.DataFrame:
    study = study or synthetic_study()
    results = tmp_path / "demo"
    write_cells(results, study, ACCURACIES | accuracies)
    return claims_table(StudyResults(results, study))


def four_models() -> Study:
    """Of two models, as the default study has, an interval for new ones holds nearly anything."""
    return synthetic_study(models=["tiny-qwen3", "tiny-llama", "tiny-qwen2", "tiny-glm4"])


def row(claims: pd.DataFrame, claim: str, algorithm: str = "grpo") -> pd.Series:
    rows = claims[claims["claim"].str.startswith(claim) & (claims["algorithm"] == algorithm)]
    assert len(rows) == 1, list(claims["claim"].unique())
    return rows.iloc[0]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.99, 1.01, "reproduced"), (0.97, 1.0, "inconclusive"), (0.8, 0.98, "not reproduced")],
)
def test_a_bar_is_judged_by_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert verdicts.at_least(Interval((low + high) / 2, low, high), 0.99) == verdict


def test_an_unknown_or_unbounded_interval_is_inconclusive() -> None:
    assert verdicts.at_least(Interval(math.nan, math.nan, math.nan), 0.5) == "inconclusive"
    assert verdicts.at_least(Interval(0.9, -math.inf, math.inf), 0.5) == "inconclusive"


def test_a_published_value_is_matched_within_a_fifth() -> None:
    assert verdicts.near(Interval(0.20, 0.18, 0.22), 0.188) == "reproduced"
    assert verdicts.near(Interval(0.20, 0.18, 0.24), 0.188) == "inconclusive"
    assert verdicts.near(Interval(0.45, 0.40, 0.50), 0.188) == "not reproduced"


def test_a_claim_of_several_parts_needs_them_all() -> None:
    assert verdicts.all_of(["reproduced", "reproduced"]) == "reproduced"
    assert verdicts.all_of(["reproduced", "inconclusive"]) == "inconclusive"
    assert verdicts.all_of(["inconclusive", "not reproduced"]) == "not reproduced"


def of_models(*scores: dict[str, np.ndarray]) -> dict[Cell, dict[str, np.ndarray]]:
    """One run of each of several models."""
    return {Cell(f"model-{index}", "grpo", 0): found for index, found in enumerate(scores)}


def test_one_cell_has_the_paired_interval_of_its_problems() -> None:
    rng = np.random.default_rng(0)
    cell = {"full": rng.binomial(4, 0.9, 300) / 4, "rank_1": rng.binomial(4, 0.8, 300) / 4}
    assert pooled_interval(of_models(cell), relative("rank_1")) == ratio_interval(cell["rank_1"], cell["full"])


def test_pooled_values_are_those_of_the_mean_over_cells() -> None:
    one = {"base": np.array([0.0, 0.5]), "full": np.array([1.0, 1.0]), "rank_1": np.array([0.5, 1.0])}
    two = {"base": np.array([0.5, 0.5]), "full": np.array([1.0, 0.5]), "rank_1": np.array([0.5, 0.5])}
    # means: base (0.25 + 0.5) / 2 = 0.375, full (1 + 0.75) / 2 = 0.875, rank_1 (0.75 + 0.5) / 2 = 0.625
    assert pooled_interval(of_models(one, two), difference("full", "base")).value == pytest.approx(0.5)
    assert pooled_interval(of_models(one, two), relative("rank_1")).value == pytest.approx(0.625 / 0.875)
    assert pooled_interval(of_models(one, two), recovered_gain("rank_1")).value == pytest.approx(0.25 / 0.5)


def test_the_pooled_interval_has_the_variance_of_cells_and_problems() -> None:
    rng = np.random.default_rng(1)
    cells = [{"full": rng.binomial(1, p, 400).astype(float)} for p in (0.3, 0.5, 0.7, 0.9)]
    interval = pooled_interval(of_models(*cells), mean_of("full"))
    means = np.array([cell["full"].mean() for cell in cells])
    within = np.mean([cell["full"].var() / 400 for cell in cells]) / 4
    expected = np.sqrt(3.182**2 * means.var(ddof=1) / 4 + 1.96**2 * within)  # Student's t with 3 degrees of freedom
    assert interval.high - interval.low == pytest.approx(2 * expected, rel=0.1)


def test_a_gain_of_nothing_has_no_bounded_share() -> None:
    rng = np.random.default_rng(2)
    cells = [{name: rng.binomial(1, 0.5, 50).astype(float) for name in ("base", "full", "rank_1")} for _ in range(2)]
    interval = pooled_interval(of_models(*cells), recovered_gain("rank_1"))
    assert (interval.low, interval.high) == (-math.inf, math.inf)


def test_the_gaussian_share_is_that_of_a_gaussian_matrix() -> None:
    matrix = np.random.default_rng(3).standard_normal((192, 64))
    measured = np.linalg.svd(matrix, compute_uv=False)[0] / np.linalg.norm(matrix)
    assert gaussian_share(np.array([192.0]), np.array([64.0]))[0] == pytest.approx(measured, rel=0.05)


def test_dominance_is_not_reproduced_where_rank_1_falls_short(tmp_path: Path) -> None:
    claims = claims_of(tmp_path, four_models())
    found = row(claims, "Rank-1 dominance: relative accuracy")
    assert found["verdict"] == "not reproduced"
    assert found["measured"] == pytest.approx(0.80 / 0.92, abs=0.04)
    assert found["low"] < found["measured"] < found["high"] < 0.99
    assert found["cells"] == 4
    assert "rank_1_random 0.3" in found["control"]
    assert "in_scope_full" in found["control"]
    gain = row(claims, "Rank-1 dominance: recovered gain")
    assert gain["measured"] == pytest.approx((0.80 - 0.35) / (0.92 - 0.35), abs=0.05)


def test_dominance_is_reproduced_only_where_the_random_control_is_beaten(tmp_path: Path) -> None:
    better = claims_of(tmp_path / "better", four_models(), full=0.80, rank_1=0.90)
    assert row(better, "Rank-1 dominance: relative accuracy")["verdict"] == "reproduced"
    by_chance = claims_of(tmp_path / "chance", four_models(), full=0.80, rank_1=0.90, rank_1_random=0.97)
    assert row(by_chance, "Rank-1 dominance: relative accuracy")["verdict"] == "not reproduced"


@pytest.mark.parametrize(
    ("control", "verdict"), [("rank_1_random_u", "not reproduced"), ("single_2", "not reproduced"), ("", "reproduced")]
)
def test_dominance_must_beat_every_control_of_equal_norm_that_was_scored(
    tmp_path: Path, control: str, verdict: str
) -> None:
    variants = ["in_scope_full", "rank_1", "rank_1_random", "rank_1_random_u", "rank_1_random_v", "single_2"]
    study = synthetic_study(ablation={"variants": variants})
    beaten = dict.fromkeys(["rank_1_random_u", "rank_1_random_v", "single_2"], 0.4)
    claims = claims_of(tmp_path, study, full=0.80, rank_1=0.90, **beaten | ({control: 0.97} if control else {}))
    found = row(claims, "Rank-1 dominance: relative accuracy")
    assert found["verdict"] == verdict
    assert "single_2" in found["control"]


def test_what_rank_1_keeps_is_put_beside_what_its_matrices_can_carry(tmp_path: Path) -> None:
    claims = claims_of(tmp_path, in_scope_full=0.75, rank_1=0.75)
    found = row(claims, "Rank-1 dominance: share of the in-scope gain")
    assert found["measured"] == pytest.approx(1, abs=0.08)
    assert row(claims, "Rank-1 dominance: recovered gain")["measured"] == pytest.approx(0.40 / 0.57, abs=0.06)


def test_learning_is_read_against_the_base_and_the_frozen_control(tmp_path: Path) -> None:
    claims = claims_of(tmp_path, four_models(), full=0.50)
    assert set(claims.loc[claims["claim"].str.startswith("RL learns"), "verdict"]) == {"not reproduced"}
    assert row(claims, "RL learns: accuracy gained over the frozen")["measured"] == pytest.approx(0.15, abs=0.05)


def test_alpharl_must_beat_the_last_checkpoint_to_count(tmp_path: Path) -> None:
    name = "AlphaRL at 40 % of the steps: relative accuracy"
    extrapolates = claims_of(
        tmp_path / "ahead", four_models(), **{"full": 0.8, "window_0.4_alpharl": 0.9, "window_0.4_last": 0.7}
    )
    assert row(extrapolates, name)["verdict"] == "reproduced"
    idle = claims_of(
        tmp_path / "idle", four_models(), **{"full": 0.8, "window_0.4_alpharl": 0.88, "window_0.4_last": 0.95}
    )
    assert row(idle, name)["verdict"] == "not reproduced"
    assert row(idle, "AlphaRL at 40 % of the steps: speed-up in RL steps")["verdict"] == "not reproduced"


def test_the_bar_is_the_algorithms_own_published_figure(tmp_path: Path) -> None:
    claims = claims_of(tmp_path)
    name = "AlphaRL at 40 % of the steps: relative accuracy"
    assert row(claims, name, "grpo")["published"] == pytest.approx(49.42 / 51.52)
    assert row(claims, name, "rloo")["published"] == pytest.approx(48.52 / 50.82)
    assert row(claims, "Norm share", "grpo")["published"] == 0.188
    assert row(claims, "Norm share", "rloo")["published"] == 0.196


def test_swept_algorithms_are_judged_by_their_trainers_figures(tmp_path: Path) -> None:
    study = synthetic_study(algorithms=["grpo"], sweep={"grpo": {"learning_rate": [3e-4]}})
    claims = claims_of(tmp_path, study)
    assert row(claims, "Norm share", "grpo-lr3e-4")["published"] == 0.188


def test_speed_up_counts_steps_and_then_every_cost(tmp_path: Path) -> None:
    claims = claims_of(tmp_path)
    assert row(claims, "AlphaRL at 40 % of the steps: speed-up in RL steps")["measured"] == pytest.approx(20 / 8)
    # 20 s of RL against 8 s of RL, 4 looks of 0.5 s at the headline decoding, and a fit of 0.5 s
    wall_clock = row(claims, "AlphaRL at 40 % of the steps: speed-up in wall-clock")
    assert wall_clock["measured"] == pytest.approx(20 / (8 + 4 * 0.5 + 0.5))
    assert wall_clock["verdict"] == "not reproduced"


def test_the_fits_own_ledger_entry_is_used_where_methods_have_one_each(tmp_path: Path) -> None:
    study = synthetic_study(models=["tiny-llama"])
    write_cells(tmp_path / "demo", study)
    entry = {"stage": "extrapolate", "status": "done", "started": "2026-01-02", "peak_rss_mib": 1.0}
    for cell in study.cells:
        ledger = StudyPaths(tmp_path / "demo").cell(cell).ledger / "extrapolate.jsonl"
        append(ledger, entry | {"method": "alpharl", "window": 0.4, "seconds": 2.0})
        append(ledger, entry | {"method": "linear", "window": 0.4, "seconds": 99.0})
    claims = claims_table(StudyResults(tmp_path / "demo", study))
    wall_clock = row(claims, "AlphaRL at 40 % of the steps: speed-up in wall-clock")
    assert wall_clock["measured"] == pytest.approx(20 / (8 + 4 * 0.5 + 2.0))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"r2_in_sample": 0.97, "r2_random_walk": 0.93, "forecast_error": 0.05}, "reproduced"),
        ({"r2_in_sample": 0.97, "r2_random_walk": 0.99, "forecast_error": 0.05}, "not reproduced"),
        ({"r2_in_sample": 0.97, "r2_random_walk": 0.93, "forecast_error": 0.30}, "not reproduced"),
        ({"r2_in_sample": 0.97, "r2_random_walk": 0.96, "forecast_error": 0.05}, "inconclusive"),
    ],
)
def test_linear_dynamics_must_beat_their_nulls_out_of_sample(
    tmp_path: Path, values: dict[str, float], verdict: str
) -> None:
    study = synthetic_study(models=["tiny-llama"])
    write_cells(tmp_path / "demo", study)
    write_dynamics(tmp_path / "demo", study, forecast_error_persistence=0.20, **values)
    claims = claims_table(StudyResults(tmp_path / "demo", study))
    assert row(claims, "Rank-1 linear dynamics: in-sample R2")["verdict"] == verdict
    ratio = row(claims, "Rank-1 linear dynamics: error of the forecast")
    assert ratio["measured"] == pytest.approx(values["forecast_error"] / 0.20)


@pytest.mark.parametrize(
    ("negative", "error", "walk", "verdicts_found"),
    [
        (0.9, 1.4, 1.4, ("reproduced", "not reproduced")),
        (0.1, 0.6, 1.4, ("not reproduced", "reproduced")),
        (0.1, 0.6, 0.5, ("not reproduced", "not reproduced")),
    ],
)
def test_lines_in_the_step_are_judged_by_steps_that_they_did_not_see(
    tmp_path: Path, negative: float, error: float, walk: float, verdicts_found: tuple[str, str]
) -> None:
    study = synthetic_study(models=["tiny-llama"])
    write_cells(tmp_path / "demo", study)
    values = {"step_r2_later_negative": negative, "step_error_later": error, "step_error_later_random_walk": walk}
    write_dynamics(tmp_path / "demo", study, **{f"whole_{name}": value for name, value in values.items()})
    claims = claims_table(StudyResults(tmp_path / "demo", study))
    found = (row(claims, "Lines in the step: share")["verdict"], row(claims, "Lines in the step: error")["verdict"])
    assert found == verdicts_found


def test_what_was_not_run_is_a_visible_row(tmp_path: Path) -> None:
    study = four_models()
    write_cells(tmp_path / "demo", study, {name: ACCURACIES[name] for name in ("base", "full")})
    for cell in study.cells:
        StudyPaths(tmp_path / "demo").cell(cell).spectra.unlink()
    claims = claims_table(StudyResults(tmp_path / "demo", study))
    verdict = claims.groupby("claim")["verdict"].agg(set)
    assert verdict["RL learns: accuracy gained over the base"] == {"reproduced"}
    assert verdict["RL learns: accuracy gained over the frozen control"] == {"not run"}
    missing = row(claims, "Rank-1 dominance: relative accuracy")
    assert (missing["verdict"], missing["cells"]) == ("not run", 0)
    assert math.isnan(missing["measured"])
    assert "needs rank_1" in missing["note"]
    for claim in ("Norm share", "Rank-1 linear dynamics: in-sample", "AlphaRL at 40 % of the steps: relative"):
        assert row(claims, claim)["verdict"] == "not run"


def test_a_window_with_too_few_kept_steps_is_said_to_be_not_applicable(tmp_path: Path) -> None:
    study = synthetic_study(keep_every=5)  # 40 % of 20 steps then hold one kept step
    write_cells(tmp_path / "demo", study, {name: ACCURACIES[name] for name in ("base", "full")})
    found = row(claims_table(StudyResults(tmp_path / "demo", study)), "AlphaRL at 40 % of the steps: relative accuracy")
    assert found["verdict"] == "not run"
    assert "not applicable" in found["note"]


def test_a_cell_without_its_scores_is_left_out_and_the_row_says_so(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study)
    gone = StudyPaths(tmp_path / "demo").cell(study.cells[0]).accuracy
    gone.with_name("accuracy-problems.parquet").unlink()
    found = row(claims_table(StudyResults(tmp_path / "demo", study)), "RL learns: accuracy gained over the base")
    assert found["cells"] == 1
    assert "1 of 2 cells" in found["note"]
    assert "the interval is about these runs" in found["note"]


def test_the_first_columns_are_the_contracts(tmp_path: Path) -> None:
    claims = claims_of(tmp_path)
    contract = ["claim", "source", "published", "measured", "low", "high", "cells", "control", "verdict"]
    assert list(claims)[: len(contract)] == contract


def test_supervised_runs_are_marked_and_compared_with_their_own_published_share(tmp_path: Path) -> None:
    claims = claims_of(tmp_path, synthetic_study(algorithms=["grpo", "sft", "dist"]))
    assert "supervised, no RL" in row(claims, "RL learns: accuracy gained over the base", "sft")["note"]
    assert "supervised" not in row(claims, "RL learns: accuracy gained over the base", "grpo")["note"]
    published = {name: row(claims, "Norm share", name)["published"] for name in ("grpo", "sft", "dist")}
    assert published == {"grpo": 0.188, "sft": 0.078, "dist": 0.126}


def test_rounding_is_judged_by_the_float32_update(tmp_path: Path) -> None:
    study = synthetic_study(rounding={"at": [1.0]})
    write_cells(tmp_path / "demo", study)
    shares = {"fp32": 0.55, "bf16": 0.25, "bf16_grid": 0.30, "random": 0.1}
    unchanged = {"fp32": 0.06, "bf16": 0.76, "bf16_grid": 0.84, "random": 0.8}
    write_rounding(tmp_path / "demo", study, shares, unchanged)
    claims = claims_table(StudyResults(tmp_path / "demo", study))
    share, sparsity = row(claims, "Rounding: norm share"), row(claims, "Rounding: share of parameters")
    assert share["measured"] == pytest.approx(0.30 / 0.55, abs=0.02)
    assert share["verdict"] == sparsity["verdict"] == "reproduced"
    # Half of all parameters are the embedding's, none of which changed in either.
    assert sparsity["measured"] == pytest.approx((0.84 - 0.06) / 2, abs=1e-6)
    for said in ("share_fp32 0.5", "share_bf16 0.2", "expected_share_bf16_grid 0.", "random_share_bf16_grid 0.1"):
        assert said in share["control"]
    assert "sparsity_fp32 0.530" in sparsity["control"]
    assert "random_sparsity_bf16_grid 0.900" in sparsity["control"]
    # The embedding is drawn into a resample or not, with all of its parameters: a share stays one.
    bounds = [float(bound) for bound in re.findall(r"[-\d.]+(?=[,\]])", sparsity["control"])]
    assert len(bounds) == 10
    assert all(0 <= bound <= 1 for bound in bounds)
    assert sparsity["high"] <= 1


def test_a_matrix_whose_change_rounding_hides_has_no_share_and_costs_no_claim(tmp_path: Path) -> None:
    study = synthetic_study(rounding={"at": [1.0]})
    write_cells(tmp_path / "demo", study)
    values = {"fp32": 0.5, "bf16": 0.25, "bf16_grid": 0.25}
    write_rounding(tmp_path / "demo", study, values, values)
    for cell in study.cells:
        file = StudyPaths(tmp_path / "demo").cell(cell).rounding
        table = pd.read_parquet(file)
        table.loc[(table["module"] == "m03") & (table["dtype"] == "bf16_grid"), "share_1"] = np.nan
        table.to_parquet(file)
    share = row(claims_table(StudyResults(tmp_path / "demo", study)), "Rounding: norm share")
    assert share["measured"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("shrunk", "unscaled", "noise", "verdicts_found"),
    [
        (0.98, 0.97, 0.35, ("reproduced", "reproduced", "inconclusive")),
        (0.80, 0.60, 0.60, ("not reproduced", "not reproduced", "not reproduced")),
    ],
)
def test_shrinkage_is_judged_beside_the_run_and_the_whole_update_of_equal_norm(
    tmp_path: Path, shrunk: float, unscaled: float, noise: float, verdicts_found: tuple[str, ...]
) -> None:
    names = ["rank_1", "rank_1_unscaled", "in_scope_full_as_rank_1", "rounding_noise_unscaled", "full_bf16_in_all"]
    asked = {"methods": ["last", "full_shrunk"], "windows": [0.4]}
    models = ["tiny-qwen3", "tiny-llama", "tiny-qwen2", "tiny-glm4"]
    study = synthetic_study(ablation={"variants": names}, extrapolation=asked, models=models)
    accuracies = {"base": 0.35, "full": 0.90, "full_shrunk": shrunk, "rank_1": 0.9, "rank_1_unscaled": unscaled}
    accuracies |= {"in_scope_full_as_rank_1": 0.85, "rounding_noise_unscaled": noise, "full_bf16_in_all": 0.9}
    write_cells(tmp_path / "demo", study, accuracies)
    claims = claims_table(StudyResults(tmp_path / "demo", study))
    found = [row(claims, f"Shrinkage: accuracy of the {name}") for name in ("shrunk run", "unscaled rank-1")]
    found += [row(claims, "Rounding: accuracy of the rounding noise")]
    assert found[0]["measured"] == pytest.approx(shrunk - 0.90, abs=0.02)
    assert found[1]["measured"] == pytest.approx(unscaled - 0.85, abs=0.03)
    assert tuple(each["verdict"] for each in found)[:2] == verdicts_found[:2]
    assert found[2]["verdict"] in (verdicts_found[2], "reproduced")


def test_nothing_shows_only_where_the_whole_interval_is_near_zero() -> None:
    assert verdicts.within(Interval(0.0, -0.01, 0.015), 0.02) == "reproduced"
    assert verdicts.within(Interval(0.0, -0.03, 0.015), 0.02) == "inconclusive"
    assert verdicts.within(Interval(-0.1, -0.12, -0.05), 0.02) == "not reproduced"


def test_a_study_that_asks_for_none_of_it_has_no_row_about_rounding_or_shrinkage(tmp_path: Path) -> None:
    ids = set(claims_of(tmp_path)["id"])
    assert not ids & {"rounding_share", "rounding_sparsity", "bf16_accuracy", "noise_accuracy", "shrinkage"}
    assert "norm_share" in ids

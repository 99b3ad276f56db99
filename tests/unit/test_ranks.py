"""How many ranks a gain needs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_study import ACCURACIES, synthetic_study, write_cells

from rlstride.study.paths import StudyPaths
from rlstride.study.study import Cell
from rlstride.tables.collect import collect
from rlstride.tables.ranks import plain_ranks, rank_needed

RANKS = [1, 2, 4, 8]


def cell(base: float, whole: float, kept: list[float], rng: np.random.Generator) -> dict[str, np.ndarray]:
    accuracies = {"base": base, "in_scope_full": whole} | {
        f"rank_{rank}": accuracy for rank, accuracy in zip(RANKS, kept, strict=True)
    }
    return {name: rng.binomial(4, accuracy, 400) / 4 for name, accuracy in accuracies.items()}


def runs(cells: list[dict[str, np.ndarray]]) -> dict[Cell, dict[str, np.ndarray]]:
    return {Cell("tiny", "grpo", seed): scores for seed, scores in enumerate(cells)}


@pytest.mark.parametrize(
    ("kept", "expected"),
    [([0.9, 0.9, 0.9, 0.9], 1), ([0.5, 0.6, 0.9, 0.9], 4), ([0.3, 0.4, 0.5, 0.6], 16)],
)
@pytest.mark.parametrize("cells", [1, 3])
def test_the_smallest_rank_with_nine_tenths_of_the_gain(kept: list[float], expected: int, cells: int) -> None:
    rng = np.random.default_rng(0)
    found = rank_needed(runs([cell(0.3, 0.9, kept, rng) for _ in range(cells)]), RANKS)
    assert (found.value, found.low, found.high) == (expected, expected, expected)


def test_a_rank_at_the_border_has_an_interval() -> None:
    rng = np.random.default_rng(1)
    cells = [cell(0.3, 0.9, [0.5, 0.84, 0.9, 0.9], rng) for _ in range(3)]  # rank 2 keeps 0.9 of the gain, or nearly
    found = rank_needed(runs(cells), RANKS)
    assert (found.low, found.high) == (2, 4)


def test_no_gain_needs_no_rank_in_particular() -> None:
    rng = np.random.default_rng(2)
    found = rank_needed(runs([cell(0.5, 0.5, [0.5] * 4, rng) for _ in range(2)]), RANKS)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_ranks_are_those_of_plain_models_beside_the_whole_update() -> None:
    variants = ["in_scope_full", "rank_4", "rank_1", "rank_1_random", "rank_2_in_mlp", "rank_10pct", "single_2"]
    assert plain_ranks(variants) == [1, 4]
    assert plain_ranks(["rank_1", "rank_2"]) == []
    assert plain_ranks(["in_scope_full", "rank_2"]) == []


def test_the_table_has_a_row_for_all_runs_each_algorithm_and_each_model(tmp_path: Path) -> None:
    study = synthetic_study()
    write_cells(tmp_path / "demo", study, ACCURACIES | {"rank_1": 0.60, "rank_2": 0.80, "rank_4": 0.91})
    collect(tmp_path / "demo", study, ["ranks"])
    found = pd.read_csv(tmp_path / "demo" / "tables" / "ranks.csv")
    assert list(zip(found["pool"], found["cells"], strict=True)) == [
        ("rl", 4),
        ("algorithm", 2),
        ("algorithm", 2),
        ("model", 2),
        ("model", 2),
    ]
    assert set(found["rank_needed"]) == {4}
    assert found.loc[0, "rank_1_share"] == pytest.approx((0.60 - 0.35) / (0.92 - 0.35), abs=0.03)
    assert found.loc[0, "base_low"] < 0.35 < found.loc[0, "base_high"]


def test_steps_on_the_way_have_rows_of_their_own(tmp_path: Path) -> None:
    fewer = ["in_scope_full", "rank_1"]
    ablation = {"variants": [*fewer, "rank_2"], "at": [0.5, 1.0], "on_the_way": fewer}
    study = synthetic_study(models=["tiny-llama"], algorithms=["grpo"], ablation=ablation)
    write_cells(tmp_path / "demo", study, ACCURACIES | {"rank_1": 0.60})
    [cell] = study.cells
    for name in ("ablation.parquet", "ablation-problems.parquet"):
        file = StudyPaths(tmp_path / "demo").cell(cell).root / name
        last = pd.read_parquet(file).query("step == 20")
        other = file.with_name(name.replace("ablation", "accuracy"))
        full = pd.read_parquet(other).query("variant == 'full'").assign(step=10)
        early = last[last["variant"].isin(fewer)].assign(step=10)
        if "score" in early:  # rank 1 keeps all of it early on
            whole = early.loc[early["variant"] == "in_scope_full", "score"].to_numpy()
            early.loc[early["variant"] == "rank_1", "score"] = whole
        pd.concat([last, early, full]).to_parquet(file)
    collect(tmp_path / "demo", study, ["ranks"])
    found = pd.read_csv(tmp_path / "demo" / "tables" / "ranks.csv").query("pool == 'rl'").set_index("step")
    assert found["ranks_to"].to_dict() == {10: 1, 20: 2}
    assert found.loc[10, "rank_1_share"] == 1
    assert found.loc[20, "rank_1_share"] < 0.6

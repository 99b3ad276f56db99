import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg

from planted_run import DECODING, STEPS, SmallRun, evaluations
from rlstride.cli import main
from rlstride.dynamics.module import degrees_between
from rlstride.dynamics.pls import r2_in_sample
from rlstride.dynamics.quantities import OF_THE_STEP, SUMMARISED, by_step, summary
from rlstride.dynamics.table import write_dynamics


@pytest.fixture(scope="module")
def table(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("dynamics") / "dynamics.parquet"
    write_dynamics(small_run.path, small_run.evaluations, out, decoding=DECODING)
    return pd.read_parquet(out)


def test_every_module_and_rank_has_every_quantity(table: pd.DataFrame) -> None:
    whole = table[table["step"] == 0]
    counts = whole.groupby(["rank", "module"])["quantity"].agg(["size", "nunique"])
    assert len(counts) == 14 * 6
    assert (counts["size"] == counts["nunique"]).all()
    assert set(counts.loc[0, "size"]) == {len(OF_THE_STEP)}
    assert set(counts.loc[[1, 2, 3, 4, 5], "size"]) == {len(SUMMARISED)}


def test_a_planted_line_is_found_and_forecast_better_than_by_persistence(table: pd.DataFrame) -> None:
    found = summary(table)
    assert set(found.loc[found["rank"] == 0, "quantity"]) == set(OF_THE_STEP)
    assert set(found.loc[found["rank"] == 5, "quantity"]) == set(SUMMARISED)
    found = found[found["rank"] == 1].set_index("quantity")
    assert (found["modules"] == 14).all()
    assert found.loc["r2_in_sample", "value"] > 0.99
    assert found.loc["q2_leave_one_out", "value"] > 0.99
    assert found.loc["r2_permuted", "value"] < 0.3
    assert found.loc["forecast_error", "value"] < 0.2 * found.loc["forecast_error_persistence", "value"]
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()


def test_persistence_is_the_distance_to_the_first_halfs_last_accuracy(table: pd.DataFrame, small_run: SmallRun) -> None:
    y = np.array([small_run.accuracies[step] for step in STEPS])
    expected = np.sqrt(np.mean((y[5:] - y[4]) ** 2))
    np.testing.assert_allclose(table.query("quantity == 'forecast_error_persistence'")["value"], expected)


def test_a_modules_figures_are_those_of_its_weights(table: pd.DataFrame, small_run: SmallRun) -> None:
    module = "model.layers.0.mlp.gate_proj"
    run, name = small_run.trajectory, f"{module}.weight"
    D = [(run.source(step).tensor(name) - run.source(0).tensor(name)).double().numpy() for step in STEPS]
    u = [np.linalg.svd(update)[0][:, 0] for update in D]
    u = [vector * np.sign(vector @ u[-1]) for vector in u]
    rows = table[table["module"] == module].set_index(["rank", "quantity", "step"])["value"]
    X = np.array([np.linalg.norm(update) * vector for update, vector in zip(D, u, strict=True)])
    y = np.array([small_run.accuracies[step] for step in STEPS])
    assert rows[1, "r2_in_sample", 0] == pytest.approx(r2_in_sample(X, y), rel=1e-4)
    angle = np.degrees(scipy.linalg.subspace_angles(u[0][:, None], u[-1][:, None])[0])
    assert rows[1, "angle_to_last_degrees", 2] == pytest.approx(angle, abs=1e-3)
    assert rows[1, "angle_to_last_degrees", 20] == pytest.approx(0, abs=1e-3)
    projected = [(update * D[-1]).sum() / (D[-1] ** 2).sum() for update in D]
    expected = np.corrcoef(STEPS, projected)[0, 1] ** 2
    assert rows[0, "r2_linear_in_step", 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("degrees", [1e-9, 0.5, 45, 89.9, 90])
def test_angles_are_between_lines_not_arrows(degrees: float) -> None:
    a = np.array([1.0, 0.0])
    b = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    for sign in (1, -1):
        assert degrees_between(a, sign * b) == pytest.approx(degrees, rel=1e-6)


def test_a_run_that_learns_nothing_has_no_r2_and_says_so(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    evaluations(dict.fromkeys(STEPS, 0.5)).to_parquet(run.evaluations)
    out = run.folder / "dynamics.parquet"
    assert main(["dynamics", str(run.path), "--evaluations", str(run.evaluations), "--out", str(out)]) == 0
    found = summary(pd.read_parquet(out)).query("rank == 1").set_index("quantity")
    assert found.loc["r2_in_sample", "modules"] == 0
    assert np.isnan(found.loc["r2_in_sample", "value"])
    entry = json.loads((run.folder / "ledger" / "dynamics.jsonl").read_text())
    assert entry["r2_in_sample"] is None


def test_a_run_that_never_moved_gives_a_table_without_a_crash(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    for step in STEPS:
        base = (run.trajectory.base_folder / "model.safetensors").read_bytes()
        (run.trajectory.model_folder(step) / "model.safetensors").write_bytes(base)
    run.restate()
    write_dynamics(run.path, run.evaluations, tmp_path / "d.parquet", decoding=DECODING)
    found = summary(pd.read_parquet(tmp_path / "d.parquet")).query("rank == 1").set_index("quantity")
    assert found.loc["r2_in_sample", "value"] == 0
    assert set(found.loc[list(OF_THE_STEP), "modules"]) == {0}
    assert found.loc["r2_linear_in_step", "modules"] == found.loc["angle_to_last_mean_degrees", "modules"] == 0


def test_each_step_has_its_norm_its_angles_and_its_place_in_the_pictures(
    table: pd.DataFrame, small_run: SmallRun
) -> None:
    found = by_step(table).set_index(["rank", "step"])
    assert list(found.loc[0].index) == list(found.loc[1].index) == list(STEPS)
    run, names = small_run.trajectory, [f"{module}.weight" for module in set(table["module"]) - {"in_scope"}]
    norms = [float((run.source(20).tensor(name) - run.source(0).tensor(name)).norm()) for name in names]
    assert found.loc[(0, 20), "norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert found.loc[(1, 20), "angle_to_last_degrees"] == pytest.approx(0, abs=1e-3)
    distance = np.hypot(found.loc[(0, 20), "pca_1"], found.loc[(0, 20), "pca_2"])
    assert distance == pytest.approx(np.linalg.norm(norms), rel=0.01)  # nearly all of the planted movement is one line
    assert found.loc[0, ["tsne_1", "tsne_2"]].notna().all(axis=None)


def test_the_same_run_gives_the_same_table(table: pd.DataFrame, small_run: SmallRun, tmp_path: Path) -> None:
    write_dynamics(small_run.path, small_run.evaluations, tmp_path / "d.parquet", decoding=DECODING)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "d.parquet"), table)


def test_a_missing_evaluation_file_is_named(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--evaluations", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "d.parquet")]
    assert main(["dynamics", str(small_run.path), *flags]) == 2
    assert "none.parquet: there is no such file" in capsys.readouterr().err

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import rlstride.spectra.table as table_module
import rlstride.spectra.updates as updates_module
from interrupted import Killed, watched
from planted_run import STEPS, SmallRun
from rlstride.cli import main
from rlstride.errors import WorkError
from rlstride.spectra.table import DEFAULT_TOLERANCES, write_spectra


@pytest.fixture(scope="module")
def spectra(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spectra") / "spectra.parquet"
    write_spectra(small_run.path, out, rank=8, tolerances=DEFAULT_TOLERANCES, device="cpu")
    return out


def test_there_is_one_row_for_each_kept_step_and_tensor(spectra: Path, small_run: SmallRun) -> None:
    frame = pd.read_parquet(spectra)
    names = small_run.trajectory.source(0).names()
    assert len(frame) == len(STEPS) * len(names)
    assert set(frame["module"]) == {name.removesuffix(".weight") for name in names}
    assert sorted(set(frame["step"])) == list(STEPS)
    assert frame["in_scope"].sum() == len(STEPS) * 2 * 7  # 2 layers: q, k, v, o, gate, up, down
    assert set(frame["dtype"]) == {"float32"}


def test_figures_are_those_of_the_subtracted_weights(spectra: Path, small_run: SmallRun) -> None:
    frame = pd.read_parquet(spectra).set_index(["step", "module"])
    module = "model.layers.1.mlp.up_proj"
    weights = [small_run.trajectory.source(step).tensor(f"{module}.weight") for step in (0, 12)]
    D = (weights[1] - weights[0]).double().numpy()
    S = np.linalg.svd(D, compute_uv=False)
    row = frame.loc[(12, module)]
    assert (row["rows"], row["cols"], row["layer"], row["kind"]) == (24, 16, 1, "up_proj")
    assert row["frobenius"] == pytest.approx(np.sqrt((D**2).sum()), rel=1e-6)
    assert [row[f"sigma_{i}"] for i in range(1, 9)] == pytest.approx(S[:8], rel=1e-4)
    assert row["share_1"] == pytest.approx(S[0] / np.sqrt((S**2).sum()), rel=1e-4)
    assert row["stable_rank"] == pytest.approx((S**2).sum() / S[0] ** 2, rel=1e-4)
    assert row["sparsity_1e-04"] == pytest.approx((np.abs(D) <= 1e-4).mean(), abs=1e-6)


def test_tensors_out_of_scope_have_norm_and_sparsity_only(spectra: Path) -> None:
    outside = pd.read_parquet(spectra).query("not in_scope")
    assert outside["frobenius"].gt(0).all()
    assert outside[["sigma_1", "share_1", "stable_rank", "entropy_rank", "tie_1"]].isna().all(axis=None)
    assert outside["sparsity_0"].notna().all()


def test_factors_rebuild_the_leading_part_of_each_update(spectra: Path, small_run: SmallRun) -> None:
    factors = load_file(spectra.with_suffix(".safetensors"))
    frame = pd.read_parquet(spectra).query("in_scope")
    assert len(factors) == 3 * len(frame)
    name = "model.layers.0.self_attn.k_proj"  # 8 x 16: all 8 triplets are kept, so the product is the whole update
    D = small_run.trajectory.source(20).tensor(f"{name}.weight") - small_run.trajectory.source(0).tensor(
        f"{name}.weight"
    )
    u, s, v = (factors[f"20/{name}/{part}"] for part in "usv")
    assert (u.shape, s.shape, v.shape) == ((8, 8), (8,), (16, 8))
    torch.testing.assert_close((u * s) @ v.mT, D, rtol=0, atol=1e-6)


def test_full_rank_keeps_every_singular_value(small_run: SmallRun, tmp_path: Path) -> None:
    assert main(["spectra", str(small_run.path), "--rank", "full", "--out", str(tmp_path / "s.parquet")]) == 0
    frame = pd.read_parquet(tmp_path / "s.parquet").query("in_scope")
    sigma = frame[[f"sigma_{i}" for i in range(1, 17)]]
    assert "sigma_17" not in frame
    assert (sigma.notna().sum(axis=1) == frame[["rows", "cols"]].min(axis=1)).all()
    np.testing.assert_allclose((sigma**2).sum(axis=1), frame["frobenius"] ** 2, rtol=1e-5)


def test_no_update_is_a_row_without_directions(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    base = (run.trajectory.base_folder / "model.safetensors").read_bytes()
    (run.trajectory.model_folder(4) / "model.safetensors").write_bytes(base)
    run.restate()
    write_spectra(run.path, tmp_path / "s.parquet", rank=2, tolerances=[0.0], device="cpu")
    rows = pd.read_parquet(tmp_path / "s.parquet").query("in_scope and step == 4")
    assert (rows[["frobenius", "sigma_1", "sigma_2"]] == 0).all(axis=None)
    assert rows[["share_1", "stable_rank", "entropy_rank"]].isna().all(axis=None)
    assert (rows["sparsity_0"] == 1).all()
    assert not rows["tie_1"].any()


def damage(run: SmallRun, step: int, name: str, values: list[float]) -> None:
    file = run.trajectory.model_folder(step) / "model.safetensors"
    tensors = load_file(file)
    tensors[name].flatten()[: len(values)] = torch.tensor(values)
    save_file(tensors, file, metadata={"format": "pt"})
    run.restate()


def test_a_checkpoint_with_nan_is_named_and_the_rest_is_measured(
    small_run: SmallRun, tmp_path: Path, spectra: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    damage(run, 10, "model.norm.weight", [float("nan")])
    damage(run, 20, "model.layers.1.mlp.up_proj.weight", [float("nan"), float("inf"), -float("inf")])
    out = run.folder / "spectra.parquet"
    assert main(["spectra", str(run.path), "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "step_000010: model.norm.weight: 1 of 16 entries are NaN or infinite" in message
    assert "step_000020: model.layers.1.mlp.up_proj.weight: 3 of 384 entries are NaN or infinite" in message
    assert f"{out} holds the rest" in message
    whole = pd.read_parquet(spectra)
    bad = [(10, "model.norm"), (20, "model.layers.1.mlp.up_proj")]
    left = whole[[place not in bad for place in zip(whole["step"], whole["module"], strict=True)]]
    pd.testing.assert_frame_equal(pd.read_parquet(out), left.reset_index(drop=True))
    factors, of_whole = (load_file(file.with_suffix(".safetensors")) for file in (out, spectra))
    assert set(of_whole) - set(factors) == {f"20/model.layers.1.mlp.up_proj/{part}" for part in "usv"}
    assert json.loads((run.folder / "ledger" / "spectra.jsonl").read_text())["status"] == "failed"


def test_tensors_out_of_scope_are_measured_in_pieces_of_their_rows(
    small_run: SmallRun, tmp_path: Path, spectra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates_module, "_PIECE_ENTRIES", 50)  # three rows of 16
    write_spectra(small_run.path, tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "s.parquet"), pd.read_parquet(spectra), rtol=1e-12)
    run = small_run.copy_to(tmp_path / "copy")
    damage(run, 4, "model.embed_tokens.weight", [float("nan")] * 70)
    with pytest.raises(WorkError, match=r"step_000004: model\.embed_tokens\.weight: 70 of \d+ entries are NaN"):
        write_spectra(run.path, tmp_path / "bad.parquet")


def test_a_base_with_nan_is_named_once(small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    damage(run, 0, "model.norm.weight", [float("nan")])
    out = tmp_path / "s.parquet"
    assert main(["spectra", str(run.path), "--out", str(out)]) == 1
    assert capsys.readouterr().err.count("entries are NaN") == 1
    assert "model.norm" not in set(pd.read_parquet(out)["module"])


def test_16_bit_checkpoints_have_a_floor_and_others_none(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    file = run.trajectory.model_folder(4) / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    run.restate()
    write_spectra(run.path, tmp_path / "s.parquet")
    frame = pd.read_parquet(tmp_path / "s.parquet").query("in_scope")
    assert frame.query("step != 4")[["floor_frobenius", "floor_share_1"]].isna().all(axis=None)
    cast = frame.query("step == 4")
    assert set(cast["dtype"]) == {"bfloat16"}
    base = load_file(run.trajectory.base_folder / "model.safetensors")
    for row in cast.itertuples():
        W = base[f"{row.module}.weight"]
        assert row.floor_frobenius == pytest.approx(float((W.bfloat16().float() - W).norm()), rel=0.2)


def test_an_interrupted_run_continues_with_the_tensors_that_are_left(
    small_run: SmallRun, tmp_path: Path, spectra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, out = watched(table_module, monkeypatch), tmp_path / "s.parquet"
    measured.most = 9
    with pytest.raises(Killed):
        write_spectra(small_run.path, out)
    assert not out.exists()

    measured.most = math.inf
    write_spectra(small_run.path, out)
    assert sorted(measured.names) == small_run.trajectory.source(0).names(), "each tensor is measured once"
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(spectra))
    assert out.with_suffix(".safetensors").read_bytes() == spectra.with_suffix(".safetensors").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger", "s.parquet", "s.safetensors"]

    measured.names.clear()
    measured.most = 9
    with pytest.raises(Killed):
        write_spectra(small_run.path, out, force=True)
    measured.names.clear()
    measured.most = math.inf
    write_spectra(small_run.path, out, rank=2, force=True)
    assert len(measured.names) == len(small_run.trajectory.source(0).names()), "parts of another rank are of no use"


def test_a_failed_run_leaves_the_table_of_an_earlier_one(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    out = run.folder / "spectra.parquet"
    assert main(["spectra", str(run.path), "--out", str(out)]) == 0
    before = out.read_bytes(), out.with_suffix(".safetensors").read_bytes()
    (run.trajectory.model_folder(20) / "model.safetensors").write_bytes(b"damaged")
    assert main(["spectra", str(run.path), "--force", "--out", str(out)]) == 2
    assert (out.read_bytes(), out.with_suffix(".safetensors").read_bytes()) == before


def test_the_same_trajectory_gives_the_same_bytes(spectra: Path, small_run: SmallRun, tmp_path: Path) -> None:
    write_spectra(small_run.path, tmp_path / "s.parquet", rank=8, tolerances=DEFAULT_TOLERANCES, device="cpu")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "s.parquet"), pd.read_parquet(spectra))
    factors = (tmp_path / "s.safetensors").read_bytes()
    assert factors == spectra.with_suffix(".safetensors").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rank", "0"], "--rank: expected a whole number from 1"),
        (["--tolerances", "1e-5,-1"], "--tolerances: a tolerance is a number from 0, not -1"),
        (["--out", "table.csv"], "table.csv: the table's name must end in .parquet"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["spectra", str(small_run.path), "--out", str(tmp_path / "s.parquet"), *flags]) == 2
    assert message in capsys.readouterr().err

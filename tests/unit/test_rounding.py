"""What rounding to bfloat16 makes of an update: measured on files, and expected from the grid alone."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from scipy.stats import norm as normal

from interrupted import Killed, watched
from planted_run import STEPS, SmallRun
from rlstride.cli import main
from rlstride.spectra import rounding as rounding_module
from rlstride.spectra.grid import Grid, expected, on_bf16_grid, share_through_noise
from rlstride.spectra.rounding import RANKS, leading_values, write_rounding
from rlstride.tables.rounding import summary

LAST = STEPS[-1]
MATRIX = "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def table(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Of the last step, times 1 and 0.003: |D|/|W| is near 1 in the planted run."""
    out = tmp_path_factory.mktemp("rounding") / "rounding.parquet"
    assert main(["rounding", str(small_run.path), "--factors", "0.003", "--out", str(out)]) == 0
    return pd.read_parquet(out)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """To 8 significant bits, ties to even, by arithmetic alone."""
    mantissa, exponent = np.frexp(tensor.double().numpy())
    return torch.from_numpy(np.ldexp(np.round(mantissa * 256), exponent - 8))


def row(table: pd.DataFrame, **values: object) -> pd.Series:
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# ---- what is measured


def test_the_grid_is_bfloat16s() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(-6, 3, 1000)
    assert torch.equal(on_bf16_grid(values).double(), rounded(values))
    assert on_bf16_grid(torch.tensor([1.00390625, 1.01171875])).tolist() == [1.0, 1.015625]  # halfway: to even
    assert torch.equal(on_bf16_grid(torch.arange(300)), torch.arange(300))


@pytest.mark.parametrize("factor", [1.0, 0.003])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "bf16_grid"])
def test_figures_are_those_of_rounded_and_subtracted_weights(
    table: pd.DataFrame, small_run: SmallRun, factor: float, dtype: str
) -> None:
    files = (small_run.trajectory.model_folder(step) / "model.safetensors" for step in (0, LAST))
    base, step = (load_file(file)[f"{MATRIX}.weight"].double() for file in files)
    D = factor * (step - base)
    shown = {
        "fp32": lambda: D,
        "bf16": lambda: rounded((base + D).float()) - rounded(base),
        "bf16_grid": lambda: rounded((rounded(base) + D).float()) - rounded(base),
    }[dtype]()
    s = torch.linalg.svdvals(shown)
    found = row(table, module=MATRIX, update="run", factor=factor, dtype=dtype)
    assert found["frobenius"] == pytest.approx(float(shown.norm()), rel=1e-5)
    assert found["weight_frobenius"] == pytest.approx(float(base.norm()), rel=1e-6)
    assert found["share_1"] == pytest.approx(float(s[0] / shown.norm()), rel=1e-4)
    for rank in RANKS:
        assert found[f"energy_{rank}"] == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()), rel=1e-4)
    assert found["cosine"] == pytest.approx(float((shown * D).sum() / shown.norm() / D.norm()), rel=1e-5)
    size = shown.numel()
    assert found["unchanged"] == pytest.approx(float((shown == 0).double().mean()), abs=2 / size)
    assert found["unchanged_1e-05"] == pytest.approx(float((shown.abs() <= 1e-5).double().mean()), abs=2 / size)


def test_rounding_lowers_the_norm_share_and_makes_sparsity_of_a_small_update(table: pd.DataFrame) -> None:
    whole = summary(table)
    small = {dtype: row(whole, update="run", factor=0.003, dtype=dtype) for dtype in ("fp32", "bf16", "bf16_grid")}
    assert small["bf16"]["share_sum"] < small["bf16_grid"]["share_sum"] < small["fp32"]["share_sum"]
    assert small["fp32"]["unchanged"] < 0.01 < 0.2 < small["bf16"]["unchanged"] < small["bf16_grid"]["unchanged"]
    large = {dtype: row(whole, update="run", factor=1.0, dtype=dtype) for dtype in small}
    assert large["bf16"]["share_sum"] == pytest.approx(large["fp32"]["share_sum"], rel=1e-3)


def test_the_nulls_have_the_updates_norm(table: pd.DataFrame) -> None:
    own = row(table, module=MATRIX, update="run", factor=1.0, dtype="fp32")
    noise, outer = (row(table, module=MATRIX, update=name, dtype="fp32") for name in ("random", "random_rank_1"))
    assert noise["frobenius"] == pytest.approx(own["frobenius"], rel=1e-5)
    assert outer["frobenius"] == pytest.approx(own["frobenius"], rel=1e-5)
    assert outer["share_1"] == pytest.approx(1, abs=1e-5)
    assert noise["share_1"] < own["share_1"]


def test_the_summary_sums_over_matrices_and_counts_all_parameters(table: pd.DataFrame) -> None:
    found = row(summary(table), update="run", factor=0.003, dtype="bf16")
    every = table[(table["update"] == "run") & (table["factor"] == 0.003) & (table["dtype"] == "bf16")]
    inside = every[every["in_scope"]]
    s1 = inside["share_1"] * inside["frobenius"]
    assert found["share_sum"] == pytest.approx(s1.sum() / inside["frobenius"].sum())
    assert found["share_mean"] == pytest.approx(inside["share_1"].mean())
    assert found["unchanged"] == pytest.approx((every["unchanged"] * every["size"]).sum() / every["size"].sum())
    assert found["relative"] == pytest.approx(
        math.sqrt((inside["frobenius"] ** 2).sum() / (inside["weight_frobenius"] ** 2).sum())
    )
    assert found["energy_1"] == pytest.approx((s1**2).sum() / (inside["frobenius"] ** 2).sum())


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (2100, 2200)])
def test_leading_values_are_lapacks(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(side, generator=generator) for side in shape)
    D = 1e-6 * (torch.randn(shape, generator=generator) + 8 * torch.outer(u, v) / math.sqrt(min(shape)))
    exact = torch.linalg.svdvals(D)[:8].double()
    torch.testing.assert_close(leading_values(D, 8), exact, rtol=4e-3, atol=0)
    assert leading_values(D[:3, :3], 8)[3:].tolist() == [0] * 5
    assert leading_values(torch.zeros(shape), 8).tolist() == [0] * 8


# ---- what is expected


@pytest.mark.parametrize("s", [0.03, 0.15, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("on_grid", [False, True])
def test_expectations_are_the_integrals_over_a_normal_change(s: float, on_grid: bool) -> None:
    """By quadrature between the places where the integrands have kinks: one spacing of 1."""

    def mean(of: Callable[[float], float]) -> float:
        kinks = np.arange(0, max(2.0, 9 * s) + 0.5, 0.5)
        return 2 * sum(quad(lambda x: of(x) * normal.pdf(x / s) / s, *ends)[0] for ends in pairwise(kinks))

    found = expected(Grid(np.array([1.0]), np.array([5.0])), s, on_grid=on_grid, tolerance=2.0)
    if on_grid:
        assert found.unchanged == pytest.approx(mean(lambda x: x < 0.5), abs=1e-6)
        assert found.within == pytest.approx(mean(lambda x: x < 2.5), abs=1e-6)
        assert found.kept == pytest.approx(mean(lambda x: x * math.floor(x + 0.5)) / s**2, rel=1e-4, abs=1e-9)
        second = mean(lambda x: math.floor(x + 0.5) ** 2)
        assert found.norm == pytest.approx(math.sqrt(second) / s, rel=1e-4, abs=1e-9)
    else:
        assert found.unchanged == pytest.approx(mean(lambda x: max(0, 1 - x)), abs=1e-6)
        assert found.within == pytest.approx(mean(lambda x: min(1, max(0, 3 - x))), abs=1e-6)
        assert found.kept == 1
        assert found.noise == pytest.approx(mean(lambda x: (x % 1) * (1 - x % 1)) / s**2, rel=1e-4)


@pytest.mark.parametrize("relative", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("on_grid", [False, True])
def test_a_random_update_shows_what_is_expected_of_it(relative: float, on_grid: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    W = 0.03 * torch.randn(500, 1000, generator=generator)
    sigma = 0.03 * relative
    D = sigma * torch.randn(W.shape, generator=generator)
    shown = rounded(((rounded(W).float() if on_grid else W) + D).double()) - rounded(W)
    of_weights = expected(Grid.of(W), sigma, on_grid=on_grid)
    of_normal = expected(Grid.of_normal(0.03), sigma, on_grid=on_grid)
    for found in (of_weights, of_normal):
        assert found.unchanged == pytest.approx(float((shown == 0).double().mean()), abs=3e-3)
        assert found.within == pytest.approx(float((shown.abs() <= 1e-5).double().mean()), abs=3e-3)
        assert found.norm == pytest.approx(float(shown.norm() / D.norm()), rel=0.03)


def test_a_leading_triplet_is_seen_through_noise_as_spiked_matrices_say() -> None:
    generator = torch.Generator().manual_seed(0)
    W = 0.03 * torch.randn(300, 600, generator=generator)
    u, v = torch.randn(300, generator=generator), torch.randn(600, generator=generator)
    D = 0.03 * 3e-4 * torch.outer(u, v)
    shown = rounded((W + D).double()) - rounded(W)
    seen = expected(Grid.of(W), float(D.norm()) / math.sqrt(D.numel()), on_grid=False)
    s1 = float(torch.linalg.svdvals(shown)[0])
    # Products of normal entries are smaller than normal ones on average, and so is their rounding noise.
    assert share_through_noise(float(D.norm()), float(D.norm()), 300, 600, seen) == pytest.approx(
        s1 / float(shown.norm()), rel=0.1
    )
    hidden = share_through_noise(1e-9, 1.0, 300, 600, seen)
    assert hidden == pytest.approx((math.sqrt(300) + math.sqrt(600)) / math.sqrt(300 * 600), rel=0.05)


def test_expectations_stand_beside_rounded_updates_alone(table: pd.DataFrame) -> None:
    assert table.loc[table["dtype"] == "fp32", "expected_unchanged"].isna().all()
    random = table[(table["update"] == "random") & (table["dtype"] == "bf16_grid") & (table["size"] > 200)]
    assert len(random) > 10
    gap = random["expected_unchanged"] - random["unchanged"]
    error = np.sqrt(random["unchanged"].clip(lower=0.002) / random["size"])
    assert (gap.abs() < 5 * error + 0.005).all()


# ---- what is refused, and what is said


def test_an_interrupted_run_continues_with_the_tensors_that_are_left(
    small_run: SmallRun, tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, out = watched(rounding_module, monkeypatch), tmp_path / "r.parquet"
    measured.most = 9
    with pytest.raises(Killed):
        write_rounding(small_run.path, out, factors=[0.003])
    assert not out.exists()
    measured.most = len(small_run.trajectory.source(0).names())
    write_rounding(small_run.path, out, factors=[0.003])
    assert len(measured.names) == len(set(measured.names)) == measured.most, "each tensor is measured once"
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger", "r.parquet"]


def test_files_in_bfloat16_get_one_row_and_a_sentence(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    file = run.trajectory.model_folder(LAST) / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    run.restate()
    assert main(["rounding", str(run.path), "--out", str(tmp_path / "r.parquet")]) == 0
    assert f"step {LAST} is stored in bfloat16: its norm share and sparsity are those of rounded files" in (
        capsys.readouterr().err
    )
    found = pd.read_parquet(tmp_path / "r.parquet")
    assert set(found["dtype"]) == {"bf16"}
    assert found["module"].is_unique


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "0"), "step 0 is the base"),
        (("--steps", "3"), "step 3 was not kept"),
        (("--factors", "0.3,-1"), "a factor is a number above 0, not -1"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert main(["rounding", str(small_run.path), *flags, "--out", str(tmp_path / "r.parquet")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.parquet").exists()


def test_a_base_in_bfloat16_is_on_the_grid_already(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    file = run.trajectory.base_folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    run.restate()
    assert main(["rounding", str(run.path), "--factors", "0.003", "--out", str(tmp_path / "r.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "r.parquet")
    small = found[(found["factor"] == 0.003) & found["in_scope"]].set_index(["dtype", "module"])
    for column in ("unchanged", "frobenius", "expected_unchanged", "expected_share_1"):
        first, second = (small.loc[dtype, column].to_numpy() for dtype in ("bf16", "bf16_grid"))
        assert first == pytest.approx(second, rel=1e-6)


def test_a_step_that_moved_nothing_has_no_shares(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    base, last = (run.trajectory.model_folder(step) / "model.safetensors" for step in (0, LAST))
    last.write_bytes(base.read_bytes())
    run.restate()
    assert main(["rounding", str(run.path), "--out", str(tmp_path / "r.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "r.parquet")
    assert (found["unchanged"] == 1).all()
    assert found["share_1"].isna().all()
    assert summary(found)["share_sum"].isna().all()

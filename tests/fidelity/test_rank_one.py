"""What must hold of rank-k models, the truncated SVD and AlphaRL (arXiv 2510.00553), from the definitions alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rlstride.spectra.updates as updates_module
from planted_run import DECODING, STEPS, SmallRun, evaluations, plant_run, quick
from rlstride.config.variants import AblationVariant, parse_ablation
from rlstride.edits.step_edits import Decomposition, rank_k_update, write_ablations
from rlstride.errors import RequestError
from rlstride.evaluation.score_tables import Measurement
from rlstride.extrapolation.alpharl import AlphaRL, fit_line
from rlstride.extrapolation.method import Target
from rlstride.extrapolation.predict import write_predictions
from rlstride.extrapolation.registry import METHODS
from rlstride.spectra.svd import TruncatedSVD, truncated_svd

LAST = STEPS[-1]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def in_scope(model: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in model.items() if ".layers." in name and tensor.ndim == 2]


@pytest.fixture(scope="module")
def ablated(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Every edited model of the last step by variant, with base and checkpoint as ``base`` and ``full``."""
    folder = tmp_path_factory.mktemp("models")
    names = ["in_scope_full", "rank_1", "rank_2", "rank_4", "rank_64", "rank_1_unscaled", "rank_1_random"]
    write_ablations(small_run.trajectory, LAST, {folder / name: parse_ablation(name) for name in names})
    models = {name: tensors(folder / name) for name in names}
    models["base"] = tensors(small_run.trajectory.base_folder)
    models["full"] = tensors(small_run.trajectory.model_folder(LAST))
    return models


def predict(run: SmallRun, out: Path, method: str, window: float, accuracy: float = 1.0) -> dict[str, torch.Tensor]:
    write_prediction(run, out, method, window, accuracy)
    return tensors(out)


def write_prediction(run: SmallRun, out: Path, method: str, window: float, accuracy: float = 1.0) -> None:
    write_predictions(
        run.trajectory,
        {out: (method, window)},
        evaluations=run.evaluations,
        decoding=DECODING,
        target_accuracy=accuracy,
        target_step=None,
        scorer=lambda: weighed,
    )


def weighed(model: Mapping[str, torch.Tensor], logit_factor: float) -> Measurement:
    """A score that depends on every weight of a model and on the factor, and on nothing else."""
    size = logit_factor * sum(float(tensor.double().square().sum()) for tensor in model.values())
    return Measurement(1, 1, 1 - abs(math.sin(size)), 0.0, 1.0, seconds=0.5, tokens=7, scores=[])


# ---- rank-k models


@pytest.mark.parametrize("variant", ["rank_1", "rank_2", "rank_4", "rank_1_random"])
def test_a_rescaled_edit_has_the_norm_of_the_full_update(
    ablated: dict[str, dict[str, torch.Tensor]], variant: str
) -> None:
    for name in in_scope(ablated["base"]):
        full = torch.linalg.norm((ablated["full"][name] - ablated["base"][name]).double())
        edit = torch.linalg.norm(ablated[variant][name].double() - ablated["base"][name].double())
        assert edit == pytest.approx(full.item(), rel=1e-5)


def test_the_rank_1_edit_is_the_full_norm_times_u1_v1(ablated: dict[str, dict[str, torch.Tensor]]) -> None:
    for name in in_scope(ablated["base"]):
        D = (ablated["full"][name] - ablated["base"][name]).double()
        U, S, Vh = torch.linalg.svd(D)
        expected = torch.linalg.norm(D) * torch.outer(U[:, 0], Vh[0])
        edit = ablated["rank_1"][name].double() - ablated["base"][name].double()
        torch.testing.assert_close(edit, expected, rtol=0, atol=1e-6)
        unscaled = ablated["rank_1_unscaled"][name].double() - ablated["base"][name].double()
        torch.testing.assert_close(unscaled, S[0] * torch.outer(U[:, 0], Vh[0]), rtol=0, atol=1e-6)


def test_full_rank_in_scope_gives_the_checkpoint_back(ablated: dict[str, dict[str, torch.Tensor]]) -> None:
    for name in in_scope(ablated["base"]):
        assert torch.equal(ablated["in_scope_full"][name], ablated["full"][name])
        torch.testing.assert_close(ablated["rank_64"][name], ablated["full"][name], rtol=0, atol=1e-6)


def test_rescaling_at_full_rank_is_a_factor_of_one() -> None:
    D = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    decomposition = Decomposition(torch.linalg.norm(D.double()).item(), truncated_svd(D, 12))
    rescaled, plain = (rank_k_update(decomposition, 12, rescale=rescale) for rescale in (True, False))
    assert (rescaled.norm() / plain.norm()).item() == pytest.approx(1, abs=1e-6)


def test_tensors_out_of_scope_stay_bit_identical_to_the_base(
    ablated: dict[str, dict[str, torch.Tensor]], small_run: SmallRun, tmp_path: Path
) -> None:
    base, full = ablated.pop("base"), ablated.pop("full")
    try:
        models = {**ablated, "alpharl": predict(small_run, tmp_path / "alpharl", "alpharl", 0.4)}
        outside = set(base) - set(in_scope(base))
        assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < outside
        for name in outside:
            assert not torch.equal(base[name], full[name]), "the run moves every tensor, or this test sees nothing"
            for variant, model in models.items():
                assert torch.equal(model[name], base[name]), (variant, name)
    finally:
        ablated |= {"base": base, "full": full}


def test_flipping_any_singular_pair_changes_no_edit() -> None:
    D = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    svd = truncated_svd(D, 4)
    norm = torch.linalg.norm(D).item()
    signs = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    flipped = replace(svd, u=svd.u * signs, v=svd.v * signs)
    for rank in range(1, 5):
        edits = [rank_k_update(Decomposition(norm, found), rank, rescale=True) for found in (svd, flipped)]
        assert torch.equal(*edits)


def test_a_scale_multiplies_the_edit(small_run: SmallRun, tmp_path: Path) -> None:
    whole, part = AblationVariant("whole", 1), AblationVariant("part", 1, scale=0.7)
    write_ablations(small_run.trajectory, LAST, {tmp_path / "whole": whole, tmp_path / "part": part})
    base = tensors(small_run.trajectory.base_folder)
    models = tensors(tmp_path / "whole"), tensors(tmp_path / "part")
    for name in in_scope(base):
        edit, scaled = (model[name].double() - base[name].double() for model in models)
        torch.testing.assert_close(scaled, 0.7 * edit, rtol=0, atol=1e-7)


def test_the_random_control_is_seeded_and_points_elsewhere(
    ablated: dict[str, dict[str, torch.Tensor]], small_run: SmallRun, tmp_path: Path
) -> None:
    write_ablations(small_run.trajectory, LAST, {tmp_path / "again": parse_ablation("rank_1_random")})
    again = tensors(tmp_path / "again")
    cosines = []
    for name in in_scope(ablated["base"]):
        assert torch.equal(again[name], ablated["rank_1_random"][name])
        random, true = (
            ablated[variant][name].double() - ablated["base"][name].double() for variant in ("rank_1_random", "rank_1")
        )
        assert torch.linalg.matrix_rank(random, rtol=1e-4) == 1
        cosines.append((random * true).sum().abs().item() / (random.norm() * true.norm()).item())
    assert np.mean(cosines) < 0.3  # two random unit vectors of length 16: 1/16 on average


# ---- truncated SVD


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (600, 700), (700, 600)])
def test_truncated_svd_agrees_with_the_exact_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    D = 1e-4 * torch.randn(shape, generator=generator)
    for strength in (0.02, 0.015, 0.012):  # above the noise's largest singular value, about 0.0051
        u, v = torch.randn(shape[0], generator=generator), torch.randn(shape[1], generator=generator)
        D += strength * torch.outer(u / u.norm(), v / v.norm())
    U, S, Vh = torch.linalg.svd(D.double(), full_matrices=False)
    found = truncated_svd(D, 3)
    assert (found.spectrum is None) == (min(shape) > 512), "small matrices are decomposed exactly, large ones are not"
    assert not found.near_tie
    assert found.s[0].item() == pytest.approx(S[0].item(), rel=1e-4)
    for i in range(3):
        assert abs(found.u[:, i].double() @ U[:, i]) > 0.999
        assert abs(found.v[:, i].double() @ Vh[i]) > 0.999


@pytest.mark.parametrize(("ratio", "near_tie"), [(1.0, True), (1.04, True), (1.06, False), (2.0, False)])
@pytest.mark.parametrize("side", [30, 600])
def test_near_ties_are_flagged(ratio: float, near_tie: bool, side: int) -> None:
    D = torch.zeros(side, side + 10)
    D[0, 0], D[1, 1], D[2, 2] = ratio, 1.0, 0.5
    assert truncated_svd(D, 1).near_tie is near_tie


# ---- AlphaRL


def test_a_noiseless_line_is_inverted_exactly() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(50)
    y = np.array([0.30, 0.35, 0.43, 0.41, 0.52])
    line = fit_line(2.5 * y[:, None] * w, y)  # x(t) = c y(t) w
    assert line is not None
    for target in (0.45, 0.9, 1.0):
        np.testing.assert_allclose(line.at(target), 2.5 * target * w, rtol=1e-9)


def test_a_noiseless_run_is_extrapolated_to_its_end(small_base: Path, tmp_path: Path) -> None:
    """Each matrix moves by g(t) u v^T and accuracy is 0.3 + 0.6 g(t), so 0.9 is reached at W0 + u v^T."""
    run = plant_run(small_base, tmp_path / "cell", noise=0)
    predicted = predict(run, tmp_path / "out", "alpharl", 0.4, accuracy=0.9)
    base, last = tensors(run.trajectory.base_folder), tensors(run.trajectory.model_folder(LAST))
    g = 1 - np.exp(-LAST / 8)
    for name in in_scope(base):
        expected = (last[name].double() - base[name].double()) / g
        torch.testing.assert_close(predicted[name].double() - base[name].double(), expected, rtol=0, atol=2e-6)


def test_a_fitted_line_predicts_the_target_at_its_own_point() -> None:
    from sklearn.cross_decomposition import PLSRegression

    rng = np.random.default_rng(0)
    y = np.linspace(0.3, 0.7, 6) + 0.02 * rng.standard_normal(6)
    X = np.cumsum(rng.standard_normal((6, 40)), axis=0)
    line = fit_line(X, y)
    assert line is not None
    fitted = PLSRegression(n_components=1, scale=True).fit(X, y)
    for target in (0.5, 0.8, 1.0):
        assert fitted.predict(line.at(target)[None]).item() == pytest.approx(target, abs=1e-9)


def test_alpharl_follows_its_four_steps(small_run: SmallRun, tmp_path: Path) -> None:
    """The formulas once more, in plain numpy and without a library's PLS."""
    predicted = predict(small_run, tmp_path / "out", "alpharl", 0.4, accuracy=0.95)
    base = tensors(small_run.trajectory.base_folder)
    steps = [2, 4, 6, 8]
    y = np.array([small_run.accuracies[step] for step in steps])
    checkpoints = [tensors(small_run.trajectory.model_folder(step)) for step in steps]
    for name in in_scope(base):
        X = []
        for checkpoint in checkpoints:
            D = (checkpoint[name] - base[name]).double().numpy()
            U, _, Vh = np.linalg.svd(D)
            X.append(np.linalg.norm(D) * U[:, 0] * np.sign(U[0, 0]))  # any one sign for all: u1 hardly turns here
            v = Vh[0] * np.sign(U[0, 0])
        X = np.array(X)
        mean, std = X.mean(0), X.std(0, ddof=1)
        Z = (X - mean) / std
        w = Z.T @ (y - y.mean())
        w /= np.linalg.norm(w)
        t = Z @ w
        p = Z.T @ t / (t @ t)
        a, b = np.polyfit(t, y, 1)
        expected = np.outer(mean + std * ((0.95 - b) / a * p), v)
        np.testing.assert_allclose(
            predicted[name].double().numpy() - base[name].double().numpy(), expected, rtol=0, atol=1e-6
        )


def test_flipping_any_singular_pair_changes_no_prediction(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = predict(small_run, tmp_path / "before", "alpharl", 0.6)
    rng = np.random.default_rng(0)

    def flipping(D: torch.Tensor, k: int, start: TruncatedSVD | None) -> TruncatedSVD:
        svd = truncated_svd(D, k, start)
        sign = float(rng.choice([-1, 1]))
        return replace(svd, u=svd.u * sign, v=svd.v * sign)

    monkeypatch.setattr(updates_module, "truncated_svd", flipping)
    after = predict(small_run, tmp_path / "after", "alpharl", 0.6)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)


def test_predictions_depend_on_accuracy_in_the_window(small_run: SmallRun) -> None:
    """Guards the poison test: a method that ignored its evaluations would pass that one."""
    window = small_run.trajectory.window(0.4)
    seen = {step: small_run.accuracies[step] for step in window.steps}
    first = AlphaRL().fit(window, seen).predict(Target(1.0, LAST))
    other = AlphaRL().fit(window, seen | {8: 0.9}).predict(Target(1.0, LAST))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(first.deltas, other.deltas, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_poisoned_future_files_leave_a_prediction_the_same_to_the_byte(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    window = 0.4
    if "next" in method:
        monkeypatch.setitem(METHODS, method, quick(METHODS[method]))
        window = 0.8
    end = small_run.trajectory.window(window).steps[-1]
    write_prediction(small_run, tmp_path / "clean", method, window)
    poisoned = small_run.copy_to(tmp_path / "copy")
    for step in STEPS:
        if step > end:
            (poisoned.trajectory.model_folder(step) / "model.safetensors").write_bytes(b"poison")
    futures = {step: 0.0 if step > end else accuracy for step, accuracy in small_run.accuracies.items()}
    if METHODS[method].spec.oracle:  # told how good the full run is, and nothing else of it
        futures[LAST] = small_run.accuracies[LAST]
    evaluations(futures).to_parquet(poisoned.evaluations)
    (tmp_path / "other").mkdir()
    write_prediction(poisoned, tmp_path / "other" / "clean", method, window)
    clean, other = (
        {file.name: re.sub(rb'"trajectory": ".*"', b"", file.read_bytes()) for file in folder.iterdir()}
        for folder in (tmp_path / "clean", tmp_path / "other" / "clean")
    )
    assert clean == other


def test_a_window_refuses_to_read_what_lies_beyond_it(small_run: SmallRun) -> None:
    window = small_run.trajectory.window(0.4)
    assert window.steps == [2, 4, 6, 8]
    with pytest.raises(RequestError, match="step 10 lies beyond the window, which ends at step 8"):
        window.source(10)

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from planted_run import SmallRun
from rlstride.cli import main
from rlstride.extrapolation.alpharl import ALPHARL_REPO, AlphaRL, AlphaRLPredictor, ModuleFit, fit_line
from rlstride.extrapolation.method import Target

RISING = np.array([0.3, 0.4, 0.45, 0.6])
TARGET = Target(accuracy=1.0, step=20)


def walk(steps: int = 4, size: int = 6) -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).standard_normal((steps, size)), axis=0)


def test_constant_features_are_dropped_and_stay_where_they_are() -> None:
    X = walk()
    line, alone = fit_line(np.insert(X, 2, 0.1, axis=1), RISING), fit_line(X, RISING)
    assert line is not None
    assert alone is not None
    at = line.at(0.9)
    assert at[2] == pytest.approx(0.1, abs=1e-15)
    np.testing.assert_allclose(np.delete(at, 2), alone.at(0.9))


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (walk(), np.full(4, 0.5)),  # accuracy does not move
        (np.ones((4, 6)), RISING),  # the matrix does not move
        (np.zeros((4, 6)), RISING),
        (np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0.4, 0.4, 0.5, 0.5])),  # unrelated: slope 0
        # Likewise, with the covariance 1e-17 in place of 0 that another processor's sums leave.
        (np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0.4, 0.4, 0.5, np.nextafter(0.5, 1)])),
        (np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]), np.array([0.4, 0.4, 0.5, 0.5])),
        (np.nextafter(0.1, [[1], [0], [1], [0]]), RISING),  # moves by rounding alone
    ],
)
def test_a_flat_or_undefined_line_is_none(X: np.ndarray, y: np.ndarray) -> None:
    assert fit_line(X, y) is None


def test_the_line_of_a_weak_but_real_slope_is_kept() -> None:
    """Accuracy 0.5 + 1e-6 x: far above rounding."""
    line = fit_line(np.array([[0.0], [1.0], [2.0]]), 0.5 + 1e-6 * np.arange(3))
    assert line is not None
    assert line.at(0.5 + 5e-6)[0] == pytest.approx(5, rel=1e-6)


def test_a_matrix_without_a_line_falls_back_to_its_last_rank_1_model_and_says_so() -> None:
    v, last = np.array([0.6, 0.8]), np.array([1.0, 2.0, 2.0])
    prediction = AlphaRLPredictor({"w": ModuleFit(None, last, v, near_tie=False)}).predict(TARGET)
    assert prediction.info["fallbacks"] == ["w"]
    assert prediction.info["fitted"] == 0
    [(name, delta)] = prediction.deltas
    assert name == "w"
    torch.testing.assert_close(delta, torch.outer(torch.from_numpy(last), torch.from_numpy(v)))


def test_a_matrix_that_never_moved_gets_a_zero_update(small_run: SmallRun) -> None:
    prediction = AlphaRLPredictor({"w": ModuleFit(None, np.zeros(3), np.ones(2), near_tie=False)}).predict(TARGET)
    assert (prediction.info["unmoved"], prediction.info["fallbacks"]) == (["w"], [])
    [(_, delta)] = prediction.deltas
    assert torch.equal(delta, torch.zeros(3, 2, dtype=torch.float64))


def test_constant_accuracy_turns_every_matrix_into_a_fallback(small_run: SmallRun) -> None:
    window = small_run.trajectory.window(0.4)
    info = AlphaRL().fit(window, dict.fromkeys(window.steps, 0.5)).predict(TARGET).info
    assert len(info["fallbacks"]) == 14
    assert info["fitted"] == 0


def test_a_further_target_reaches_further(small_run: SmallRun) -> None:
    window = small_run.trajectory.window(0.4)
    fitted = AlphaRL().fit(window, {step: small_run.accuracies[step] for step in window.steps})
    near, far = (fitted.predict(Target(accuracy, 20)).info["x_norm_over_last"] for accuracy in (0.8, 1.0))
    # |D(t)|F is about c g(t), and accuracy 0.3 + 0.6 g(t), so x* / x(m) is about (y* - 0.3) / (y(m) - 0.3).
    assert near["median"] == pytest.approx(0.5 / (small_run.accuracies[8] - 0.3), rel=0.02)
    assert far["median"] == pytest.approx(0.7 / (small_run.accuracies[8] - 0.3), rel=0.02)


def test_the_authors_code_adds_to_the_windows_last_model_what_it_fits_on_s1_u1(small_run: SmallRun) -> None:
    """Once more in plain numpy, for one matrix; tensors that are not fitted are those of the window's last step."""
    window = small_run.trajectory.window(0.4)
    accuracies = {step: small_run.accuracies[step] for step in window.steps}
    deltas = dict(ALPHARL_REPO.fit(window, accuracies).predict(TARGET).deltas)
    base, *models = (load_file(window.model_folder(step) / "model.safetensors") for step in (0, *window.steps))
    name = "model.layers.1.mlp.down_proj.weight"
    X = []
    for model in models:
        U, s, Vh = np.linalg.svd((model[name] - base[name]).double().numpy())
        sign = np.sign(U[0, 0])  # any one sign for all: u1 hardly turns here
        X.append(s[0] * U[:, 0] * sign)
        v = Vh[0] * sign
    line = fit_line(np.array(X), np.array(list(accuracies.values())))
    assert line is not None
    D = (models[-1][name] - base[name]).double().numpy()
    np.testing.assert_allclose(deltas[name].numpy(), D + np.outer(line.at(TARGET.accuracy), v), rtol=0, atol=1e-6)
    embedding = "model.embed_tokens.weight"
    torch.testing.assert_close(deltas[embedding].float(), models[-1][embedding] - base[embedding])


def test_a_matrix_without_a_line_stays_at_the_last_model_in_the_authors_code(small_run: SmallRun) -> None:
    window = small_run.trajectory.window(0.4)
    prediction = ALPHARL_REPO.fit(window, dict.fromkeys(window.steps, 0.5)).predict(TARGET)
    assert len(prediction.info["fallbacks"]) == 14
    base, last = (load_file(window.model_folder(step) / "model.safetensors") for step in (0, 8))
    for name, delta in prediction.deltas:
        assert torch.equal((base[name].double() + delta).float(), last[name])


def test_the_oracle_is_alpharl_with_the_full_runs_accuracy_as_its_target(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    flags = ["--window", "0.4", "--evaluations", str(run.evaluations)]
    full = run.accuracies[20]
    for out, method in (("oracle", ["alpharl_oracle"]), ("plain", ["alpharl", "--target-accuracy", str(full)])):
        out_flags = ["--out", str(tmp_path / out), "--method", *method]
        assert main(["extrapolate", str(run.path), *flags, *out_flags]) == 0
    oracle, plain = (load_file(tmp_path / out / "model.safetensors") for out in ("oracle", "plain"))
    assert all(torch.equal(oracle[name], plain[name]) for name in plain)
    card = (tmp_path / "oracle" / "README.md").read_text()
    assert "- oracle: the target is the fully trained run's validation accuracy" in card
    assert "oracle:" not in (tmp_path / "plain" / "README.md").read_text()
    entries = (run.folder / "ledger" / "extrapolate.jsonl").read_text().splitlines()
    assert json.loads(entries[0])["target_accuracy"] == pytest.approx(full)


def test_an_oracle_without_the_last_steps_accuracy_says_so(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    frame = pd.read_parquet(run.evaluations)
    frame[frame["step"] < 20].to_parquet(run.evaluations)
    flags = ["--method", "alpharl_oracle", "--window", "0.4", "--out", str(tmp_path / "m")]
    assert main(["extrapolate", str(run.path), *flags, "--evaluations", str(run.evaluations)]) == 2
    assert f"{run.evaluations}: no row for step 20" in capsys.readouterr().err

import numpy as np
import pytest
import torch

from planted_run import SmallRun
from rlstride.extrapolation.alpharl import AlphaRL, AlphaRLPredictor, ModuleFit, fit_line
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
    ],
)
def test_a_flat_or_undefined_line_is_none(X: np.ndarray, y: np.ndarray) -> None:
    assert fit_line(X, y) is None


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

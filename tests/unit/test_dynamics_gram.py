"""How far a movement is a line in the step: from inner products, against the same figures from the positions."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from planted_run import SmallRun
from rlstride.dynamics.gram import (
    error_of_going_on,
    error_over_persistence,
    leading_share,
    r2_in_step,
    random_walk_gram,
    update_gram,
)
from rlstride.dynamics.nulls import random_walk
from rlstride.dynamics.pictures import pca_path, tsne_path
from rlstride.spectra.updates import UpdateReader

STEPS = np.arange(5.0, 80, 5)  # 15 kept steps, 10 to predict 5, as in NExt


@pytest.fixture
def positions() -> np.ndarray:
    """A bent and noisy movement (T, d)."""
    rng = np.random.default_rng(0)
    bend = np.stack([STEPS / 75, (STEPS / 75) ** 2, np.sin(STEPS / 20)], axis=1)
    return bend @ rng.standard_normal((3, 40)) + 0.05 * rng.standard_normal((15, 40))


def predicted(X: np.ndarray, seen: int, degree: int) -> np.ndarray:
    coefficients = np.polyfit(STEPS[:seen], X[:seen], degree)
    return np.stack([np.polyval(coefficients[:, entry], STEPS) for entry in range(X.shape[1])], axis=1)


@pytest.mark.parametrize("degree", [1, 2])
def test_r2_in_sample_is_that_of_least_squares_on_every_entry(positions: np.ndarray, degree: int) -> None:
    expected = r2_score(positions, predicted(positions, 15, degree), multioutput="variance_weighted")
    assert r2_in_step(positions @ positions.T, STEPS, 15, degree) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("degree", [1, 2])
def test_later_steps_are_predicted_by_earlier_ones_alone(positions: np.ndarray, degree: int) -> None:
    later, guess = positions[10:], predicted(positions, 10, degree)[10:]
    G = positions @ positions.T
    assert r2_in_step(G, STEPS, 10, degree) == pytest.approx(
        r2_score(later, guess, multioutput="variance_weighted"), abs=1e-8
    )
    expected = np.linalg.norm(later - guess) / np.linalg.norm(later - positions[9])
    assert error_over_persistence(G, STEPS, 10, degree) == pytest.approx(expected, rel=1e-8)


def test_going_on_starts_at_the_last_step_seen(positions: np.ndarray) -> None:
    slope = np.polyfit(STEPS[:10], positions[:10], 1)[0]
    guess = positions[9] + np.outer(STEPS[10:] - STEPS[9], slope)
    expected = np.linalg.norm(positions[10:] - guess) / np.linalg.norm(positions[10:] - positions[9])
    assert error_of_going_on(positions @ positions.T, STEPS, 10) == pytest.approx(expected, rel=1e-8)


def test_a_straight_line_is_predicted_without_error() -> None:
    X = STEPS[:, None] * np.random.default_rng(1).standard_normal(30)
    G = X @ X.T
    assert r2_in_step(G, STEPS, 10) == pytest.approx(1, abs=1e-9)
    assert error_over_persistence(G, STEPS, 10) == pytest.approx(0, abs=1e-6)
    assert leading_share(G) == pytest.approx(1)


def test_the_random_walk_is_the_mean_of_many_walks_with_the_same_step_lengths(positions: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    lengths = np.linalg.norm(np.diff(positions, axis=0, prepend=0), axis=1)
    walks = [random_walk(lengths, 4096, rng) for _ in range(50)]
    null = random_walk_gram(positions @ positions.T)
    np.testing.assert_allclose(np.mean([walk @ walk.T for walk in walks], axis=0), null, atol=0.02 * null.max())
    drawn = [r2_in_step(walk @ walk.T, STEPS, 10) for walk in walks]
    assert r2_in_step(null, STEPS, 10) == pytest.approx(np.mean(drawn), rel=0.05)


def test_a_random_walk_looks_like_one_direction_too() -> None:
    even = np.eye(1000).cumsum(axis=0)  # unit steps, each in a direction of its own
    assert leading_share(even @ even.T) == pytest.approx(8 / np.pi**2, abs=0.001)


def test_what_never_moves_has_no_figures() -> None:
    G = np.zeros((15, 15))
    assert np.isnan([r2_in_step(G, STEPS, 10), error_over_persistence(G, STEPS, 10), leading_share(G)]).all()
    assert not pca_path(G).any()
    assert not tsne_path(G, seed=0).any()


def test_what_stopped_moving_has_no_error_to_be_compared_with() -> None:
    X = np.minimum(STEPS, 30)[:, None] * np.ones(3)
    assert np.isnan([r2_in_step(X @ X.T, STEPS, 10), error_over_persistence(X @ X.T, STEPS, 10)]).all()


def test_inner_products_are_those_of_the_updates(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlstride.spectra.updates._PIECE_ENTRIES", 10_000)  # several pieces for each matrix
    reader = UpdateReader(small_run.trajectory)
    weight = reader.in_scope[0]
    D = np.stack([reader.update(weight, step).numpy().ravel() for step in small_run.trajectory.steps]).astype(float)
    np.testing.assert_allclose(update_gram(reader, weight), D @ D.T, rtol=1e-10)


def test_principal_components_are_those_of_base_and_positions(positions: np.ndarray) -> None:
    found = PCA(n_components=2).fit_transform(np.vstack([np.zeros(40), positions]))
    expected = found[1:] - found[0]
    path = pca_path(positions @ positions.T)
    np.testing.assert_allclose(np.abs(path), np.abs(expected), atol=1e-6)
    assert (path.mean(axis=0) > 0).all()


def test_tsne_keeps_neighbours_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(3)
    X = np.repeat([[0.0] * 9, [50.0] * 9], [5, 10], axis=0) + rng.standard_normal((15, 9))
    path = tsne_path(X @ X.T, seed=4)
    np.testing.assert_array_equal(path, tsne_path(X @ X.T, seed=4))
    whole = np.vstack([np.zeros(2), path])  # the base is one of the first group
    near, far = whole[:6], whole[6:]
    gap = np.linalg.norm(near.mean(axis=0) - far.mean(axis=0))
    assert gap > 2 * max(np.linalg.norm(group - group.mean(axis=0), axis=1).max() for group in (near, far))

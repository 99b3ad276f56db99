import numpy as np
import pytest

from rlstride.dynamics.nulls import r2_iid_noise, r2_permuted, r2_random_walk, random_walk
from rlstride.dynamics.pls import fit_pls1, q2_leave_one_out, r2, r2_in_sample


def walk(steps: int, size: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).standard_normal((steps, size)), axis=0)


@pytest.mark.parametrize(("steps", "size"), [(5, 40), (27, 64), (30, 3)])
def test_the_closed_form_is_scikit_learns_pls(steps: int, size: int) -> None:
    from sklearn.cross_decomposition import PLSRegression

    X, y = walk(steps, size), np.random.default_rng(1).random(steps)
    X[:, 1] = 2.0  # a constant feature
    library = PLSRegression(n_components=1, scale=True).fit(X, y)
    np.testing.assert_allclose(fit_pls1(X, y).predict(X), library.predict(X).ravel(), rtol=1e-9)
    assert r2_in_sample(X, y) == pytest.approx(library.score(X, y), rel=1e-9)


def test_a_noiseless_line_is_known_exactly_out_of_sample() -> None:
    y = np.linspace(0.3, 0.9, 8)
    X = 2.5 * y[:, None] * np.random.default_rng(0).standard_normal(50)
    assert r2_in_sample(X, y) == pytest.approx(1)
    assert q2_leave_one_out(X, y) == pytest.approx(1)
    np.testing.assert_allclose(fit_pls1(X[:4], y[:4]).predict(X[4:]), y[4:])


def test_in_sample_r2_of_pure_noise_is_near_one_and_its_q2_is_not() -> None:
    """T = 27, d = 4096: why every R2 stands beside its nulls."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((27, 4096)), np.linspace(0.3, 0.9, 27)
    assert r2_in_sample(X, y) > 0.98
    assert r2_iid_noise(X, y, 5, rng) > 0.98
    assert q2_leave_one_out(X, y) < 0.1


def test_a_random_walk_fits_a_rising_accuracy_well() -> None:
    rng = np.random.default_rng(0)
    assert r2_random_walk(walk(27, 64), np.linspace(0.3, 0.9, 27), 20, rng) > 0.85


def test_permuting_the_accuracies_breaks_a_true_line() -> None:
    y = np.linspace(0.3, 0.9, 20)
    X = y[:, None] * np.ones(30)
    assert r2_permuted(X, y, 20, np.random.default_rng(0)) < 0.3


def test_a_random_walk_has_the_given_step_lengths() -> None:
    lengths = np.array([3.0, 1.0, 0.0, 2.0])
    path = random_walk(lengths, 50, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(np.diff(path, axis=0, prepend=0), axis=1), lengths, atol=1e-12)


def test_r2_of_known_errors() -> None:
    y = np.array([0.0, 1.0, 2.0])
    assert r2(y, y) == 1
    assert r2(y, np.ones(3)) == 0
    assert r2(y, np.array([0.0, 1.0, 3.0])) == pytest.approx(0.5)
    assert np.isnan(r2(np.ones(3), np.ones(3)))


def test_constant_accuracy_or_a_still_matrix_gives_a_flat_line() -> None:
    assert not fit_pls1(walk(5, 4), np.full(5, 0.4)).coefficients.any()
    assert not fit_pls1(np.ones((5, 4)), np.linspace(0, 1, 5)).coefficients.any()


def test_accuracy_that_goes_with_no_feature_gives_a_flat_line_whatever_the_rounding() -> None:
    """Opposed features: the least rounding in w cancels in the score, and the slope would divide by its square."""
    x, y = np.array([1.0, -1.0, 1.0, -1.0]), np.array([0.4, 0.4, 0.5, 0.5])
    for off in (0.0, 1e-16, -3e-16):
        assert not fit_pls1(np.stack([x, -x], axis=1), y + off * x).coefficients.any()


def test_what_moves_by_rounding_alone_is_constant() -> None:
    rising = np.linspace(0.3, 0.9, 5)
    still = 0.1 + np.array([0.0, 1.0, 2.0, 3.0, 4.0]) * 2**-56  # multiples of the spacing of floats at 0.1
    assert np.ptp(still) > 0
    assert not fit_pls1(still[:, None], rising).coefficients.any()
    assert not fit_pls1(walk(5, 4), still).coefficients.any()
    assert np.isnan(r2(still, rising))


def test_r2_of_accuracies_whose_mean_rounds_away_from_them_is_undefined() -> None:
    y = np.full(3, 0.1)
    assert y.mean() != 0.1
    assert np.isnan(r2(y, y))
    assert np.isnan(q2_leave_one_out(walk(3, 4), y))

"""Methods whose prediction is a weighted sum of the window's updates, and the controls beside them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from planted_run import SmallRun
from rlstride.cli import main
from rlstride.extrapolation.coordinates import at_step, coordinates, propagated

STEPS = np.arange(2.0, 21, 2)


def predicted(run: SmallRun, out: Path, method: str, *flags: str) -> dict[str, torch.Tensor]:
    assert main(["extrapolate", str(run.path), "--method", method, "--out", str(out), *flags]) == 0
    return load_file(out / "model.safetensors")


def base(run: SmallRun) -> dict[str, torch.Tensor]:
    return load_file(run.trajectory.base_folder / "model.safetensors")


def moved_like(run: SmallRun, folder: Path, position: Callable[[str, int], torch.Tensor]) -> SmallRun:
    """The run with other updates: position(name, step) is D(t)."""
    from safetensors.torch import save_file

    copy, start = run.copy_to(folder), base(run)
    for step in copy.trajectory.steps:
        tensors = {name: (start[name].double() + position(name, step)).float() for name in start}
        save_file(tensors, copy.trajectory.model_folder(step) / "model.safetensors")
    copy.restate()
    return copy


def direction(name: str, like: torch.Tensor, index: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + 1000 * index)
    return torch.randn(like.shape, dtype=torch.float64, generator=generator)


def test_coordinates_are_those_of_the_singular_value_decomposition() -> None:
    M = np.random.default_rng(0).standard_normal((6, 50))
    found = coordinates(M @ M.T, 3)
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    np.testing.assert_allclose(found.s, s[:3], rtol=1e-10)
    signs = np.where(U[-1, :3] < 0, -1, 1)
    np.testing.assert_allclose(found.path, U[:, :3] * s[:3] * signs, atol=1e-9)
    x = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(found.weights_of(x) @ M, x @ (signs[:, None] * Vt[:3]), atol=1e-9)


def test_what_never_moved_has_no_coordinates() -> None:
    assert coordinates(np.zeros((4, 4)), 2).path.shape == (4, 0)


def test_coordinates_below_rounding_are_left_out() -> None:
    M = np.outer(np.arange(1.0, 6), np.ones(30))
    assert coordinates(M @ M.T, 3).path.shape == (5, 1)


def test_relex_is_one_direction_with_a_coefficient_linear_in_the_step(small_run: SmallRun, tmp_path: Path) -> None:
    """Against the definition: the SVD of the rows vec(D(t)), a line through the coefficients, W0 + c(T*) v."""
    found = predicted(small_run, tmp_path / "m", "relex", "--window", "0.5", "--target-step", "30")
    start, run = base(small_run), small_run.trajectory
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"):
        later = {step: load_file(run.model_folder(step) / "model.safetensors")[name] for step in STEPS[:5].astype(int)}
        M = torch.stack([(each - start[name]).double().flatten() for each in later.values()]).numpy()
        U, s, Vt = np.linalg.svd(M, full_matrices=False)
        c = np.polyval(np.polyfit(STEPS[:5], U[:, 0] * s[0], 1), 30)
        expected = start[name].double().flatten().numpy() + c * Vt[0]
        np.testing.assert_allclose(found[name].double().flatten().numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("method", "position"),
    [
        ("relex", lambda name, like, t: t * direction(name, like)),
        ("taylor", lambda name, like, t: t * direction(name, like) + t * t / 20 * direction(name, like, 1)),
        ("dmd", lambda name, like, t: 0.9**t * direction(name, like) - 0.7**t * direction(name, like, 1)),
    ],
)
def test_a_movement_of_its_own_form_is_continued_exactly(
    small_run: SmallRun,
    tmp_path: Path,
    method: str,
    position: Callable[[str, torch.Tensor, int], torch.Tensor],
) -> None:
    start = base(small_run)
    run = moved_like(small_run, tmp_path / "run", lambda name, t: 0.01 * position(name, start[name], t))
    found = predicted(run, tmp_path / "m", method, "--window", "0.6")
    for name, tensor in load_file(run.trajectory.model_folder(20) / "model.safetensors").items():
        moved = float((tensor - start[name]).norm())
        assert float((found[name] - tensor).norm()) < 0.01 * moved, name


def test_a_polynomial_is_read_off_at_the_target() -> None:
    path = np.stack([3 + 2 * STEPS, STEPS**2], axis=1)
    np.testing.assert_allclose(at_step(STEPS, path, 50.0, 2), [103, 2500], rtol=1e-9)
    np.testing.assert_allclose(at_step(STEPS, path[:, :1], 50.0, 1), [103], rtol=1e-9)


def test_modes_that_grow_are_held() -> None:
    rising = 1.5 ** np.arange(6.0)[:, None]
    np.testing.assert_allclose(propagated(rising, 10), rising[-1])
    falling = 0.5 ** np.arange(6.0)[:, None]
    np.testing.assert_allclose(propagated(falling, 3), falling[-1] / 8)


def test_kept_steps_at_unequal_distances_are_refused_by_dmd(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run.copy_to(tmp_path / "run")
    manifest = run.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 4,', '"step": 5,', 1))
    flags = ["--method", "dmd", "--window", "0.5", "--out", str(tmp_path / "m")]
    assert main(["extrapolate", str(run.path), *flags]) == 2
    assert "dmd needs kept steps at equal distances; these are 1, 2, 3 apart" in capsys.readouterr().err


def test_the_first_update_is_scaled_to_the_target(small_run: SmallRun, tmp_path: Path) -> None:
    found, start = predicted(small_run, tmp_path / "m", "first_update", "--window", "0.5"), base(small_run)
    first = load_file(small_run.trajectory.model_folder(2) / "model.safetensors")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, start[name] + 10 * (first[name] - start[name]), rtol=1e-5, atol=1e-6)


def test_norm_only_is_the_rank_1_update_with_the_norm_of_the_linear_one(small_run: SmallRun, tmp_path: Path) -> None:
    found, start = predicted(small_run, tmp_path / "m", "norm_only", "--window", "0.5"), base(small_run)
    last = load_file(small_run.trajectory.model_folder(10) / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    D, edit = (last[name] - start[name]).double(), (found[name] - start[name]).double()
    u, _, v = torch.linalg.svd(D)
    torch.testing.assert_close(edit, 2 * D.norm() * torch.outer(u[:, 0], v[0]), rtol=0, atol=1e-5)
    assert torch.equal(found["model.embed_tokens.weight"], start["model.embed_tokens.weight"])


def test_a_random_direction_has_the_norm_of_the_linear_update_in_every_tensor(
    small_run: SmallRun, tmp_path: Path
) -> None:
    found, start = predicted(small_run, tmp_path / "m", "random_direction", "--window", "0.5"), base(small_run)
    again = predicted(small_run, tmp_path / "n", "random_direction", "--window", "0.5")
    last = load_file(small_run.trajectory.model_folder(10) / "model.safetensors")
    for name, tensor in found.items():
        D, edit = (last[name] - start[name]).double(), (tensor - start[name]).double()
        assert float(edit.norm()) == pytest.approx(2 * float(D.norm()), rel=1e-4)
        assert torch.equal(tensor, again[name])
    name = "model.layers.0.mlp.up_proj.weight"
    cosine = torch.nn.functional.cosine_similarity(
        (found[name] - start[name]).flatten(), (last[name] - start[name]).flatten(), dim=0
    )
    assert abs(float(cosine)) < 0.05

import json
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from planted_run import SmallRun, quick
from rlstride.cli import main
from rlstride.config.study_file import Extrapolation
from rlstride.evaluation.score_tables import Measurement
from rlstride.extrapolation.method import Target
from rlstride.extrapolation.next_predictor import AHEAD
from rlstride.extrapolation.registry import METHODS
from rlstride.trajectory.store import Trajectory


def extrapolate(run: SmallRun, out: Path, *flags: str) -> int:
    return main(["extrapolate", str(run.path), "--out", str(out), "--evaluations", str(run.evaluations), *flags])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_study_may_name_every_method_and_no_other() -> None:
    [names] = get_args(Extrapolation.model_fields["methods"].annotation)
    assert list(get_args(names)) == list(METHODS)
    assert all(method.name == name for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_a_window_of_the_fewest_steps_is_enough(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method = quick(METHODS[name])
    window = Trajectory(small_run.path, limit=2 * method.spec.fewest_steps)  # every second step is kept
    assert len(window.steps) == method.spec.fewest_steps
    accuracies = {step: small_run.accuracies[step] for step in window.steps}
    score = Measurement(1, 1, 0.5, 0.0, 1.0, seconds=0.5, tokens=7, scores=[])
    prediction = method.fit(window, accuracies).predict(Target(1.0, 20, lambda prediction: score))
    assert all(bool(delta.isfinite().all()) for _, delta in prediction.deltas)


@pytest.mark.parametrize(
    ("name", "steps", "why"),
    [
        ("alpharl", 3, "a line through two accuracies has no error"),
        ("relex", 2, "two points make a line"),
        ("taylor", 3, "three make a parabola"),
        ("dmd", 3, "two transitions determine a map of two coordinates"),
        ("next", AHEAD + 2, "two pairs of input and target, five steps apart"),
    ],
)
def test_a_method_needs_as_many_steps_as_determine_it(name: str, steps: int, why: str) -> None:
    assert METHODS[name].spec.fewest_steps == steps, why


def test_last_is_the_windows_last_checkpoint_to_the_bit(small_run: SmallRun, tmp_path: Path) -> None:
    assert extrapolate(small_run, tmp_path / "m", "--method", "last", "--window", "0.5") == 0
    model, checkpoint = tensors(tmp_path / "m"), tensors(small_run.trajectory.model_folder(10))
    assert model.keys() == checkpoint.keys()
    assert all(torch.equal(model[name], checkpoint[name]) for name in model)


@pytest.mark.parametrize(("flags", "factor"), [([], 20 / 8), (["--target-step", "16"], 2), (["--target-step", "8"], 1)])
def test_linear_goes_on_from_the_base_in_all_tensors(
    small_run: SmallRun, tmp_path: Path, flags: list[str], factor: float
) -> None:
    assert extrapolate(small_run, tmp_path / "m", "--method", "linear", "--window", "0.4", *flags) == 0
    base, seen = tensors(small_run.trajectory.base_folder), tensors(small_run.trajectory.model_folder(8))
    for name, tensor in tensors(tmp_path / "m").items():
        expected = base[name] + factor * (seen[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(tensor, base[name])


def test_a_window_over_everything_extrapolates_linearly_to_the_last_checkpoint(
    small_run: SmallRun, tmp_path: Path
) -> None:
    assert extrapolate(small_run, tmp_path / "m", "--method", "linear", "--window", "1") == 0
    model, last = tensors(tmp_path / "m"), tensors(small_run.trajectory.model_folder(20))
    assert all(torch.equal(model[name], last[name]) for name in model)


def test_a_window_too_short_for_one_method_leaves_the_others(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models"
    assert extrapolate(small_run, out, "--method", "last,alpharl", "--window", "0.2,0.4") == 1
    reason = "alpharl needs 3 kept steps in its window; the window 0.2 holds 2"
    said = f"rlstride extrapolate: {small_run.path}: 1 of 4 models not applicable (window_0.2_alpharl: {reason})\n"
    assert capsys.readouterr().err.endswith(said)
    assert sorted(path.name for path in out.iterdir()) == [
        "not_applicable.json",
        "window_0.2_last",
        "window_0.4_alpharl",
        "window_0.4_last",
    ]
    reasons = json.loads((out / "not_applicable.json").read_text())
    assert reasons == {"window_0.2_alpharl": reason}
    asked = ("--method", "last,alpharl", "--window", "0.2,0.4", "--where-applicable", "--force")  # as the workflow does
    assert extrapolate(small_run, out, *asked) == 0


def test_alpharl_is_not_applicable_where_accuracy_goes_with_no_matrix(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    pd.read_parquet(run.evaluations).assign(accuracy=0.5).to_parquet(run.evaluations)
    flags = ("--method", "alpharl", "--window", "0.4")
    assert extrapolate(run, tmp_path / "m", *flags) == 1
    assert "accuracy goes with the movement of no matrix in the window 0.4" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    assert extrapolate(run, tmp_path / "m", *flags, "--where-applicable") == 0
    assert "14 matrices could not be fitted; the window's last update stands in" in capsys.readouterr().err
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_a_single_window_too_short_is_an_error(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extrapolate(small_run, tmp_path / "m", "--method", "alpharl", "--window", "0.2") == 2
    assert "alpharl needs 3 kept steps in its window; the window 0.2 holds 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "alpha", "--window", "0.4"], "no extrapolation method 'alpha'; known: last, linear, "),
        (["--method", "last", "--window", "1.2"], "a window is a share of the steps in (0, 1], not 1.2"),
        (["--method", "last", "--window", "0.01"], "last needs 1 kept steps in its window; the window 0.01 holds 0"),
        (["--method", "alpharl", "--window", "0.4", "--target-accuracy", "90"], "an accuracy is in [0, 1], not 90"),
        (["--method", "linear", "--window", "0.4", "--target-step", "0"], "--target-step: expected a whole number"),
        (["--method", "alpharl", "--window", "0.4", "--decoding", "t0.6"], "'t0.6'; it has: greedy, t1.0"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert extrapolate(small_run, tmp_path / "m", *flags) == 2
    assert message in capsys.readouterr().err


def test_alpharl_without_evaluations_says_what_is_missing(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "alpharl", "--window", "0.4", "--out", str(tmp_path / "m")]
    assert main(["extrapolate", str(small_run.path), *flags]) == 2
    assert "--evaluations: alpharl needs the accuracy of the kept steps" in capsys.readouterr().err


def test_a_kept_step_without_accuracy_is_named_with_its_file(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    frame = pd.read_parquet(run.evaluations)
    frame[frame["step"] != 6].to_parquet(run.evaluations)
    assert extrapolate(run, tmp_path / "m", "--method", "alpharl", "--window", "0.4") == 2
    assert f"{run.evaluations}: no row for step 6" in capsys.readouterr().err
    assert extrapolate(run, tmp_path / "m", "--method", "last", "--window", "0.4") == 0


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        (["last"], "step 8, the window's last"),
        (["linear"], "step 20"),
        (["linear", "--target-step", "16"], "step 16"),
        (["alpharl", "--target-accuracy", "0.9"], "accuracy 0.9"),
    ],
)
def test_a_card_names_what_the_model_was_extrapolated_to(
    small_run: SmallRun, tmp_path: Path, flags: list[str], target: str
) -> None:
    assert extrapolate(small_run, tmp_path / "m", "--window", "0.4", "--method", *flags) == 0
    assert f"- target: {target}\n" in (tmp_path / "m" / "README.md").read_text()


def test_card_and_ledger_tell_what_was_seen_and_how_far_it_reaches(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    assert extrapolate(run, tmp_path / "m", "--method", "alpharl", "--window", "0.4") == 0
    card = (tmp_path / "m" / "README.md").read_text()
    for fact in (
        "- method: alpharl\n",
        "- window: 0.4 of the run: up to step 8 of 20",
        "- kept steps seen: 2, 4, 6, 8\n",
        "- target: accuracy 1\n",
        "**Predicted, not measured**",
        "accuracy is not measured",
        *run.trajectory.manifest.base.sha256.values(),
    ):
        assert fact in card
    entry = json.loads((run.folder / "ledger" / "extrapolate.jsonl").read_text())
    assert (entry["method"], entry["window"], entry["steps_seen"]) == ("alpharl", 0.4, [2, 4, 6, 8])
    assert (entry["fitted"], entry["fallbacks"]) == (14, [])
    assert entry["seconds"] > 0

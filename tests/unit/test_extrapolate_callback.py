"""The callback that ends a run at its window with a predicted model, or trains on from there."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_stride_callback import study, trainer_of, weights
from test_training import study_file

from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.extrapolation.extrapolate_callback import ExtrapolateCallback
from rlstride.study.load import Study

__all__ = ["study", "study_file"]  # the fixtures
pytestmark = pytest.mark.slow


def rising(model: torch.nn.Module, draw: int) -> list[float]:
    """Accuracies that differ from step to step: of some weights that move."""
    total = sum(float(tensor.detach().abs().sum()) for tensor in model.parameters())
    return [total % 1.0, (total * 7) % 1.0]


@pytest.mark.parametrize("method", ["last", "linear", "relex", "norm_only", "alpharl"])
def test_a_run_that_stops_at_its_window_ends_with_what_the_verb_predicts(
    study: Study, tmp_path: Path, method: str
) -> None:
    trainer = trainer_of(study, "grpo", tmp_path / "state", steps=10)
    seen: dict[int, float] = {}

    def validate(model: torch.nn.Module, draw: int) -> list[float]:
        scores = rising(model, draw)
        seen[trainer.state.global_step] = sum(scores) / 2
        return scores

    callback = ExtrapolateCallback(method, tmp_path / "window", window=6, validate=validate, target_accuracy=0.9)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 6

    evaluations = tmp_path / "evaluations.parquet"
    about = {"variant": "checkpoint", "split": "validation", "decoding": "t1.0"}
    rows = [about | {"step": step, "accuracy": seen.get(step, 0.0)} for step in (2, 4, 6)]
    pd.DataFrame(rows).to_parquet(evaluations)
    target = ["--target-accuracy", "0.9"] if method == "alpharl" else ["--target-step", "10"]
    flags = ["--method", method, "--window", "1", *target]
    paths = ["--evaluations", str(evaluations), "--out", str(tmp_path / "model")]
    assert main(["extrapolate", str(tmp_path / "window"), *flags, *paths]) == 0
    predicted = load_file(tmp_path / "model" / "model.safetensors")
    ended = weights(trainer.model)
    assert predicted.keys() <= ended.keys() | {"lm_head.weight"}
    for name, tensor in ended.items():
        torch.testing.assert_close(tensor, predicted[name], rtol=0, atol=0)


def test_what_stopping_saves_is_the_steps_left_less_what_the_method_cost(study: Study, tmp_path: Path) -> None:
    trainer = trainer_of(study, "grpo", tmp_path / "state", steps=10)
    callback = ExtrapolateCallback("alpharl", tmp_path / "window", window=8, validate=rising)
    trainer.add_callback(callback)
    trainer.train()
    found = callback.report
    assert (found["window"], found["steps_left"], found["kept_steps"]) == (8, 2, [2, 4, 6, 8])
    spent = found["validation_seconds"] + found["extrapolation_seconds"]
    assert spent > 0
    assert found["saved_seconds"] == pytest.approx(found["training_seconds"] / 4 - spent, abs=1e-3)


def test_a_run_that_goes_on_takes_its_next_step_from_the_prediction_with_fresh_averages(
    study: Study, tmp_path: Path
) -> None:
    ends = {}
    for then in ("stop", "go_on"):
        trainer = trainer_of(study, "grpo", tmp_path / then, steps=7)
        trainer.add_callback(ExtrapolateCallback("linear", tmp_path / f"{then}-window", window=6, then=then))
        trainer.train()
        ends[then] = trainer.state.global_step, weights(trainer.model)
    assert [step for step, _ in ends.values()] == [6, 7]
    jumped, ended = ends["stop"][1], ends["go_on"][1]
    longest = max(float((ended[name] - tensor).abs().max()) for name, tensor in jumped.items())
    assert longest == pytest.approx(1e-3, rel=0.02), "Adam's first update is as long as its rate"


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("alpharl", {}, "needs the accuracy of the kept steps; give a validate function"),
        ("linear_validated", {}, "nothing to choose its target by"),
        ("alpharl_oracle", {"validate": rising}, "nothing to choose its target by"),
        ("lineal", {}, "there is no extrapolation method 'lineal'"),
    ],
)
def test_a_method_that_cannot_work_inside_of_a_run_is_refused_at_once(
    tmp_path: Path, method: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        ExtrapolateCallback(method, tmp_path, window=4, **options)


def test_a_window_with_too_few_kept_steps_is_refused(study: Study, tmp_path: Path) -> None:
    trainer = trainer_of(study, "grpo", tmp_path / "state", steps=6)
    trainer.add_callback(ExtrapolateCallback("alpharl", tmp_path / "window", window=4, validate=rising))
    with pytest.raises(RequestError, match="alpharl needs 3 kept steps in its window; the first 4 steps hold 2"):
        trainer.train()

"""The callback that ends a run at its window with a predicted model, or trains on from there."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from test_adapters import KINDS, with_adapter
from test_stride_callback import equal, study, trainer_of, weights
from test_training import study_file
from transformers import AutoModelForCausalLM, Trainer

from planted_run import quick
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.extrapolation.extrapolate_callback import ExtrapolateCallback
from rlstride.extrapolation.registry import METHODS
from rlstride.study.load import load_study
from rlstride.study.study import Study
from rlstride.training.callbacks import HarvestCallback
from rlstride.trajectory.adapted import Adapted
from rlstride.trajectory.store import Trajectory

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


# ---- adapters


@pytest.fixture(scope="module")
def adapted(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(with_adapter(study_file, tmp_path_factory.mktemp("adapted"), KINDS["lora"]))


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights(model).items() if "lora" in name}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Alike in float32, in which base and adapter are added."""
    assert found.keys() - expected.keys() <= {"lm_head.weight"}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["last", "linear", "norm_only", "random_direction", "next"])
def test_an_adapter_and_its_moved_base_together_are_what_the_verb_predicts(
    adapted: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setitem(METHODS, method, quick(METHODS[method]))
    trainer = trainer_of(adapted, "grpo", tmp_path / "state", steps=10)
    trainer.add_callback(ExtrapolateCallback(method, tmp_path / "window", window=7, keep_every=1))
    trainer.train()
    assert trainer.state.global_step == 7
    flags = ["--method", method, "--window", "1", "--target-step", "10", "--out", str(tmp_path / "model")]
    assert main(["extrapolate", str(tmp_path / "window"), *flags]) == 0
    predicted = load_file(tmp_path / "model" / "model.safetensors")
    close(Adapted(trainer.model).whole(), predicted)

    last = load_file(tmp_path / "window" / "step_000007" / "adapter_model.safetensors")
    saved = {name.replace(".default", "").removesuffix(".weight"): t for name, t in adapter_of(trainer.model).items()}
    assert saved.keys() == {name.removesuffix(".weight") for name in last}
    assert all(torch.equal(saved[name.removesuffix(".weight")], tensor) for name, tensor in last.items())

    trainer.save_model(str(tmp_path / "saved"))  # the adapter alone, which names the base that it now belongs to
    folder = PeftConfig.from_pretrained(tmp_path / "saved").base_model_name_or_path
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    close(PeftModel.from_pretrained(base, tmp_path / "saved").merge_and_unload().state_dict(), predicted)


def test_a_jump_of_next_is_of_rank_1_in_the_frozen_base_and_training_goes_on_in_the_adapter(
    adapted: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "next", quick(METHODS["next"]))
    trainer = trainer_of(adapted, "grpo", tmp_path / "state", steps=8)
    harvest = HarvestCallback(tmp_path / "trajectory", keep_every=1)
    trainer.add_callback(harvest)  # before the other: it keeps the window's last step as it was before the jump
    trainer.add_callback(ExtrapolateCallback("next", tmp_path / "window", window=7, keep_every=1, then="go_on"))
    trainer.train()
    assert trainer.state.global_step == 8
    start, moved = (load_file(tmp_path / "window" / name / "model.safetensors") for name in ("base", "moved_base"))
    for name, tensor in start.items():
        jump = moved[name] - tensor
        if name.endswith("_proj.weight"):
            s = torch.linalg.svdvals(jump.double())
            assert s[1] < 1e-3 * s[0], name  # of differences between float32 numbers
        else:
            assert not jump.any(), name
    frozen = Adapted(trainer.model).frozen
    assert all(torch.equal(frozen[name], moved[name]) for name in moved)
    last = load_file(tmp_path / "window" / "step_000007" / "adapter_model.safetensors")
    ended = {name.replace(".default", ""): tensor for name, tensor in adapter_of(trainer.model).items()}
    longest = max(float((ended[name] - tensor).abs().max()) for name, tensor in last.items())
    assert longest == pytest.approx(trainer.args.learning_rate, rel=0.02), "Adam's first update is as long as its rate"

    base = tmp_path / "window" / "base"
    harvest.writer.finish("base", base, algorithm="grpo", seed=0, config_hash="", training=[])
    kept = Trajectory(tmp_path / "trajectory")
    assert [kept.record(step).kind for step in (7, 8)] == ["adapter", "hf"]
    source = kept.source(8)
    close({name: source.tensor(name) for name in source.names()}, {n: Adapted(trainer.model).whole()[n] for n in moved})


@pytest.mark.parametrize("from_step", [2, 6])
def test_an_adapters_run_resumed_before_or_after_its_jump_ends_as_one_never_interrupted(
    adapted: Study, tmp_path: Path, from_step: int
) -> None:
    ends = []
    for checkpoint in (None, tmp_path / "state" / f"checkpoint-{from_step}"):
        trainer = trainer_of(adapted, "grpo", tmp_path / "state", steps=8)
        trainer.args.save_total_limit = None
        callback = ExtrapolateCallback(
            "alpharl", tmp_path / "window", window=4, keep_every=1, validate=rising, then="go_on"
        )
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        ends.append((weights(trainer.model), callback.report["kept_steps"]))
        saved = PeftConfig.from_pretrained(tmp_path / "state" / "checkpoint-8")
        assert saved.base_model_name_or_path == str(tmp_path / "window" / "moved_base")
    assert equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1] == [1, 2, 3, 4]


def test_a_run_is_neither_mixed_with_another_one_nor_resumed_past_its_end(study: Study, tmp_path: Path) -> None:
    def begun() -> Trainer:
        trainer = trainer_of(study, "grpo", tmp_path / "state", steps=2)
        trainer.add_callback(ExtrapolateCallback("last", tmp_path / "window", window=2))
        return trainer

    begun().train()
    checkpoint = tmp_path / "state" / "checkpoint-2"
    with pytest.raises(RequestError, match="window: holds kept steps of another run; name a new folder"):
        begun().train()
    with pytest.raises(RequestError, match="checkpoint-2: this run ended at its window, step 2"):
        begun().train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "extrapolate.json").unlink()
    with pytest.raises(RequestError, match="checkpoint-2: holds nothing of ExtrapolateCallback's"):
        begun().train(resume_from_checkpoint=str(checkpoint))


def test_a_base_whose_rounding_would_swallow_a_jump_is_refused(adapted: Study, tmp_path: Path) -> None:
    trainer = trainer_of(adapted, "grpo", tmp_path / "state", steps=2)
    for layer in trainer.model.modules():
        if hasattr(layer, "base_layer"):
            layer.base_layer.to(torch.bfloat16)
    trainer.add_callback(ExtrapolateCallback("last", tmp_path / "window", window=2))
    with pytest.raises(RequestError, match="base is in bfloat16, whose rounding would swallow a small jump"):
        trainer.train()

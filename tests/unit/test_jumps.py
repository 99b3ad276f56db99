"""Runs of a study that are really cut short: stopped at a window with a predicted model, or trained on from it."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from synthetic_study import STEPS, synthetic_study, write_cell, write_manifest
from test_adapters import KINDS, with_adapter
from test_training import digests, study_file, train

from children import start
from rlstride.cli import main
from rlstride.config.methods import JumpMethodName
from rlstride.errors import RequestError
from rlstride.extrapolation.extrapolate_callback import ExtrapolateCallback
from rlstride.extrapolation.registry import METHODS
from rlstride.ledger import append, read_ledger
from rlstride.report.findings import jump_findings
from rlstride.report.page import write_report
from rlstride.study.load import load_study
from rlstride.study.paths import CellPaths, StudyPaths
from rlstride.study.plan import planned_jumps
from rlstride.study.study import Cell, Study
from rlstride.tables.collect import collect
from rlstride.tables.results import StudyResults
from rlstride.trajectory.manifest import read_manifest
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter

__all__ = ["study_file"]  # the fixture
JUMPS = {
    "stop": {"method": "alpharl", "window": 0.6},  # of ten steps, every second one kept: 2, 4, 6
    "relex": {"method": "relex", "window": 0.5},
    "on": {"method": "linear", "window": 0.4, "until": 0.8},
}
CELL = "random/grpo/0"
LONGEST_WAIT = 600.0


@pytest.fixture(scope="module")
def jumping(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_jumps(study_file, tmp_path_factory.mktemp("jumping"))


def with_jumps(study_file: Path, root: Path, **jumps: Any) -> Path:
    plain = yaml.safe_load(study_file.read_text())
    plain["extrapolation"] = {"target_accuracy": 0.5, "jumps": JUMPS | jumps}
    plain["evaluation"] = {"test_problems": 16, "validation_problems": 16}
    file = root / "jumps.yaml"
    file.write_text(yaml.safe_dump(plain))
    return file


@pytest.fixture(scope="module")
def full(jumping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run's trajectory."""
    out = tmp_path_factory.mktemp("full") / "trajectory"
    train(jumping, CELL, out)
    return out


# ---- what a study may ask for


def test_jumps_take_every_method_that_works_inside_of_a_run(tmp_path: Path) -> None:
    def refused(name: str) -> bool:
        try:
            ExtrapolateCallback(name, tmp_path, window=4, validate=lambda model, draw: [0.5])
        except RequestError:
            return True
        return METHODS[name].name.startswith("logits")  # has no weights to put in

    assert sorted(get_args(JumpMethodName)) == sorted(name for name in METHODS if not refused(name))


@pytest.mark.parametrize(
    ("jump", "sentence"),
    [
        ({"method": "alpharl", "window": 0.5}, "alpharl needs 3 kept steps in its window; the window 0.5 holds 2"),
        ({"method": "linear", "window": 0.5, "until": 0.5}, "until: 0.5 is not beyond the window, 0.5"),
        ({"method": "linear", "window": 0.4, "until": 0.5}, "no step is kept between the window 0.4 and the end 0.5"),
        ({"method": "linear_validated", "window": 0.5}, "'last', 'linear'"),
    ],
)
def test_a_jump_that_cannot_be_taken_is_refused_before_anything_runs(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jump: dict[str, Any], sentence: str
) -> None:
    study = with_jumps(study_file, tmp_path, wrong=jump)
    assert main(["check", "--study", str(study)]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "wrong" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("cell", "jump", "sentence"),
    [
        (CELL, "nowhere", "there is no 'nowhere'; the study has on, relex, stop"),
        ("random/strides/0", "on", "jumps are run beside RL that does not stride, not beside this cell"),
        ("random/frozen/0", "on", "jumps are run beside RL that does not stride, not beside this cell"),
    ],
)
def test_a_jump_that_a_study_has_not_is_refused(
    jumping: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, jump: str, sentence: str
) -> None:
    command = ["train", "--study", str(jumping), "--cell", cell, "--jump", jump, "--out", str(tmp_path / "trajectory")]
    assert main(command) == 2
    assert sentence in capsys.readouterr().err


def test_windows_and_ends_are_the_last_kept_steps_before_them(jumping: Path) -> None:
    planned = planned_jumps(load_study(jumping).spec)
    steps = {name: (jump.window_step, jump.last_step) for name, jump in planned.items()}
    assert steps == {"stop": (6, 6), "relex": (4, 4), "on": (4, 8)}


# ---- what such a run is


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stop", "relex"])
def test_a_run_that_stops_is_the_whole_run_up_to_what_the_verb_predicts_from_its_window(
    jumping: Path, full: Path, tmp_path: Path, name: str
) -> None:
    out, scores = tmp_path / "trajectory", tmp_path / "validation.parquet"
    train(jumping, CELL, out, name)
    planned = planned_jumps(load_study(jumping).spec)[name]
    own, whole = digests(out), digests(full)
    before = [step for step in whole if step < planned.window_step]
    assert {step: own[step] for step in before} == {step: whole[step] for step in before}
    assert list(own) == [*before, planned.window_step]
    # What the method was told on the way are the accuracies that the pipeline measures.
    scored = ["--study", str(jumping), "--cell", CELL, "--split", "validation", "--decodings", "t1.0"]
    assert main(["evaluate", str(full), *scored, "--out", str(scores)]) == 0
    method = ["--method", planned.jump.method, "--window", str(planned.jump.window), "--target-accuracy", "0.5"]
    assert (
        main(["extrapolate", str(full), *method, "--evaluations", str(scores), "--out", str(tmp_path / "model")]) == 0
    )
    predicted = load_file(tmp_path / "model" / "model.safetensors")
    for key, tensor in load_file(out / f"step_{planned.window_step:06d}" / "model.safetensors").items():
        assert torch.equal(tensor, predicted[key]), key


@pytest.mark.slow
def test_a_run_that_goes_on_ends_where_it_was_told_to(jumping: Path, full: Path, tmp_path: Path) -> None:
    out = tmp_path / "trajectory"
    train(jumping, CELL, out, "on")
    own, whole = digests(out), digests(full)
    assert list(own) == [2, 4, 6, 8]
    assert own[2] == whole[2]
    assert own[4] != whole[4], "step 4 is kept after the jump"
    assert [record.step for record in read_manifest(out).training] == list(range(1, 9))
    assert not (out.parent / "training").exists()
    (entry,) = read_ledger(out.parent / "ledger")
    assert (entry["jump"], entry["method"], entry["window"], entry["kept_steps"]) == ("on", "linear", 4, [2, 4])


@pytest.mark.slow
def test_an_adapters_run_that_goes_on_keeps_models_that_need_no_moved_base(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "trajectory"
    train(with_jumps(with_adapter(study_file, tmp_path, KINDS["lora"]), tmp_path), CELL, out, "on")
    run = Trajectory(out)
    kinds = {record.step: record.kind for record in read_manifest(out).steps}
    assert kinds == {2: "adapter", 4: "hf", 6: "hf", 8: "hf"}
    name = "model.layers.0.self_attn.q_proj.weight"
    base, *steps = (run.source(step).tensor(name) for step in (0, *run.steps))
    assert len({float((step - base).norm()) for step in steps}) == len(steps), "the weights move at every step"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stop", "on"])
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_uninterrupted_one(
    jumping: Path, tmp_path: Path, name: str
) -> None:
    whole, out = tmp_path / "whole" / "trajectory", tmp_path / "0" / "trajectory"
    began = time.monotonic()
    train(jumping, CELL, whole, name)
    length, moments, kills, attempt = time.monotonic() - began, random.Random(name), 0, 0
    while kills < 3:
        child = start(["train", "--study", jumping, "--cell", CELL, "--jump", name, "--out", out])
        child.join(moments.uniform(0.1 * length, length))
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            kills += 1
        else:
            assert child.exitcode == 0
            assert digests(out) == digests(whole)
            attempt += 1
            out = tmp_path / str(attempt) / "trajectory"
    train(jumping, CELL, out, name)
    assert digests(out) == digests(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stop", "on"])
def test_a_run_killed_before_its_manifest_is_finished_without_training_again(
    jumping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, out = tmp_path / "whole" / "trajectory", tmp_path / "broken" / "trajectory"
    train(jumping, CELL, whole, name)

    def killed(self: TrajectoryWriter, *arguments: Any, **options: Any) -> None:
        if self.folder == out:
            raise KeyboardInterrupt
        finish(self, *arguments, **options)

    finish = TrajectoryWriter.finish
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrajectoryWriter, "finish", killed)
        train(jumping, CELL, out, name)
    train(jumping, CELL, out, name)
    assert digests(out) == digests(whole)
    last = planned_jumps(load_study(jumping).spec)[name].last_step
    entry = read_ledger(out.parent / "ledger")[-1]
    assert (entry["status"], entry["resumed_from"], entry["steps"]) == ("done", last, last)
    assert entry["training_seconds"] > 0, "what the jump cost is told by the run that paid it"


# ---- what is told of it

TOLD = {"stop": {"method": "alpharl", "window": 0.4}, "on": {"method": "next", "window": 0.7, "until": 0.9}}
SECONDS = {"training_seconds": 4.0, "validation_seconds": 1.5, "extrapolation_seconds": 0.5}


def finished(tmp_path: Path) -> tuple[Path, Study]:
    """A study of 20 steps of a second and 1,000 tokens; of its jumps one ends at step 8, one at 18 from step 14 on."""
    study = synthetic_study(models=["tiny-llama"], algorithms=["grpo"], controls=[])
    spec = study.spec.model_copy(update={"extrapolation": study.spec.extrapolation.model_validate({"jumps": TOLD})})
    study = Study(study.path, spec, study.task, study.models, study.algorithms, study.controls)
    results = tmp_path / "demo"
    (cell,) = study.cells
    paths = StudyPaths(results).cell(cell)
    accuracies = {"base": 0.35, "full": 0.92, "jump_stop": 0.9, "jump_on": 0.75}
    accuracies |= {"window_0.4_last": 0.65, "window_0.9_last": 0.85}
    write_cell(paths, study, cell, np.random.default_rng(0), accuracies)
    for planned in planned_jumps(spec).values():
        own = paths.jump(planned.variant)
        write_run(own, cell, planned.last_step)
        entry = {"stage": "train", "status": "done", "started": "2026-01-02T00:00:00+00:00", "seconds": 30.0}
        append(own.ledger / "train.jsonl", entry | SECONDS | {"peak_rss_mib": 700.5})
    return results, study


def write_run(paths: CellPaths, cell: Cell, steps: int) -> None:
    write_manifest(paths, cell)
    whole = json.loads(paths.manifest.read_text())
    for part in ("steps", "training"):
        whole[part] = [record for record in whole[part] if record["step"] <= steps]
    paths.manifest.write_text(json.dumps(whole))


def test_what_a_jump_costs_has_everything_inside_and_stands_beside_the_full_run(tmp_path: Path) -> None:
    results, study = finished(tmp_path)
    collect(results, study, ["jumps", "ledger"])
    table = pd.read_csv(results / "tables" / "jumps.csv").set_index(["jump", "decoding"])
    stop, on = table.loc["stop", "t1.0"], table.loc["on", "t1.0"]
    assert (stop.window_step, stop.last_step, on.window_step, on.last_step) == (8, 8, 14, 18)
    # 4 s of RL, 1.5 of validation, 0.5 of prediction; then four steps of a second. The full run took 20 s.
    assert (stop.window_seconds, stop.after_seconds, stop.full_seconds, stop.saved_seconds) == (6, 0, STEPS, 14)
    assert (on.window_seconds, on.after_seconds, on.saved_seconds) == (10, 4, 10)
    assert (stop.steps_speed_up, stop.seconds_speed_up) == (2.5, pytest.approx(20 / 6, rel=1e-4))
    # 8 steps of 1,000 tokens and four looks of 4,000; NExt is told no accuracy.
    assert (stop.window_tokens, on.window_tokens, on.full_tokens) == (24000, 18000, 20000)
    assert stop.gain == pytest.approx((stop.accuracy - stop.base) / (stop.full - stop.base), abs=1e-4)
    for row in (stop, on):  # "last" is plain RL of as many steps
        assert row.over_last == pytest.approx(row.accuracy - row["last"], abs=1e-4)
    stages = pd.read_csv(results / "tables" / "ledger.csv").stage
    assert (stages == "train").sum() == 3


def test_the_report_has_a_sentence_and_a_row_for_each_jump(tmp_path: Path) -> None:
    results, study = finished(tmp_path)
    collect(results, study)
    table = pd.read_csv(results / "tables" / "jumps.csv")
    stop, on = jump_findings(StudyResults(results, study), table)
    assert "what alpharl predicts after step 8 of 20, and ends there" in stop
    assert "less the full run's at that step: 0.2" in stop
    assert "0.30 of the full run's seconds with every cost inside (1 run)" in stop
    assert "after step 14 of 20, and trains on to step 18" in on
    assert "less the full run's at that step: -0.0" in on
    write_report(results, study, results / "report")
    page = (results / "report" / "index.html").read_text()
    assert "Runs that were cut short" in page
    assert page.count("<td>tiny-llama</td>") >= 2
    assert jump_findings(StudyResults(results, study), table.iloc[:0]) == ["stop was not run.", "on was not run."]

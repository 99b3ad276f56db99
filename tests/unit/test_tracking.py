"""rlstride track: MLflow holds each run once, whole, whatever happened before."""

import contextlib
import errno
import os
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from synthetic_study import ACCURACIES, STEPS, synthetic_study, write_cells, write_rounding

from rlstride.errors import RequestError
from rlstride.evaluation.score_tables import metrics_file
from rlstride.study.load import resolved_yaml
from rlstride.study.paths import StudyPaths
from rlstride.study.study import Study
from rlstride.tables.collect import collect
from rlstride.tables.results import StudyResults
from rlstride.tracking.mlflow_writer import CONTENT_TAG, CREATED_TAG, KEY_TAG, PARENT_TAG, track
from rlstride.tracking.runs import cell_runs
from warm_start import CODE, warm_programs

FEW = {name: ACCURACIES[name] for name in ("base", "full", "rank_1", "window_0.4_alpharl")}


@pytest.fixture(scope="module")
def study() -> Study:
    return synthetic_study(models=["tiny-llama"], algorithms=["grpo"])


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes some seconds to make its tables."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/demo before it is tracked. Tests must not change it."""
    demo = tmp_path_factory.mktemp("finished") / "demo"
    write_cells(demo, study, FEW)
    collect(demo, study)
    (demo / "study.yaml").write_text(resolved_yaml(study))
    figure = demo / "report/figures/accuracy_over_rank.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"a figure")
    return demo


@pytest.fixture
def results(tmp_path: Path, finished: Path, empty_database: Path) -> Path:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return shutil.copytree(finished, tmp_path / "demo")


def uri_of(results: Path) -> str:
    return f"sqlite:///{results.parent / 'mlflow.db'}"


def runs_of(results: Path, uri: str | None = None) -> dict[str, object]:
    client = MlflowClient(uri or uri_of(results))
    [experiment] = [found for found in client.search_experiments() if found.name == "demo"]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    runs = {run.data.tags[KEY_TAG]: run for run in found}
    assert len(runs) == len(found)
    return runs


def metric_points(results: Path) -> int:
    with sqlite3.connect(results.parent / "mlflow.db") as database:
        query = "select count(*) from metrics m join runs r using (run_uuid) where r.lifecycle_stage = 'active'"
        return int(database.execute(query).fetchone()[0])


def test_cells_are_parents_and_variants_their_children(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    runs = runs_of(results)
    cell, control = "demo/tiny-llama/grpo/0", "demo/tiny-llama/frozen/0"
    assert set(runs) == {cell, *(f"{cell}/{name}" for name in FEW), control, "demo"}
    assert all(runs[f"{cell}/{name}"].data.tags[PARENT_TAG] == runs[cell].info.run_id for name in FEW)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[cell].data.params["algorithm.learning_rate"] == str(study.algorithms["grpo"].learning_rate)
    assert runs[control].data.params["algorithm.learning_rate"] == "0.0"
    assert runs[cell].data.params["model.architecture.hidden_size"] == "64"
    assert runs[f"{cell}/window_0.4_alpharl"].data.params["window"] == "0.4"


def test_curves_go_by_step_and_accuracies_are_the_tables(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    client, runs, cell = MlflowClient(uri_of(results)), runs_of(results), "demo/tiny-llama/grpo/0"
    rewards = client.get_metric_history(runs[cell].info.run_id, "train/reward")
    assert [(point.step, round(point.value, 2)) for point in rewards[:2]] == [(1, 0.42), (2, 0.44)]
    assert len(rewards) == STEPS
    validation = client.get_metric_history(runs[cell].info.run_id, "validation/accuracy/t1.0")
    assert [point.step for point in validation] == list(range(0, STEPS + 1, 2))
    table = pd.read_parquet(StudyPaths(results).cell(study.cells[0]).ablation)
    expected = table[(table["variant"] == "rank_1") & (table["decoding"] == "greedy")].iloc[0]
    metrics = runs[f"{cell}/rank_1"].data.metrics
    assert metrics["accuracy/greedy"] == expected["accuracy"]
    assert metrics["accuracy_low/greedy"] == expected["low"]


def test_the_divergence_from_the_base_is_a_curve_of_the_cell(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    client, run = MlflowClient(uri_of(results)), runs_of(results)["demo/tiny-llama/grpo/0"]
    points = client.get_metric_history(run.info.run_id, "drift/kl_to_base")
    assert [point.step for point in points] == [0, 4, 10, STEPS]
    last = 2 * (FEW["full"] - FEW["base"])
    assert run.data.metrics["drift/kl_to_base"] == points[-1].value == pytest.approx(last)
    assert run.data.metrics["drift/kl_from_base"] == pytest.approx(1.5 * last)


def test_what_rounding_makes_of_a_run_is_a_metric_by_dtype(tmp_path: Path) -> None:
    asked = synthetic_study(rounding={"at": [1.0]})
    shares = {"fp32": 0.5, "bf16": 0.2, "random": 0.1}
    write_cells(tmp_path / "demo", asked)
    write_rounding(tmp_path / "demo", asked, shares, unchanged={"fp32": 0.4, "bf16": 0.9, "random": 0.9})
    metrics = cell_runs(StudyResults(tmp_path / "demo", asked), asked.cells[0])[0].metrics
    found = {name: value for (name, step), (value, _) in metrics.items() if name.startswith("rounding/")}
    assert found["rounding/share_sum/fp32"] == pytest.approx(0.5, abs=0.02)
    assert found["rounding/share_sum/bf16"] == pytest.approx(0.2, abs=0.02)
    assert found["rounding/unchanged_1e-05/bf16"] == pytest.approx((0.9 + 1) / 2)  # and an embedding as large
    assert found["rounding/relative/fp32"] == pytest.approx(1e-3)


def test_a_benchmarks_figures_are_metrics_of_the_models_that_it_is_about(results: Path, study: Study) -> None:
    paths = StudyPaths(results).cell(study.cells[0])
    about = {"task": "gsm8k", "decoding": "t0.6", "metric": "exact_match", "filter": "strict-match"}
    ends = {"low": 0.1, "high": 0.5}
    rows = [
        {"variant": "full", "step": 24, **about, "measure": "avg@16", "value": 0.25, **ends},
        {"variant": "full", "step": 24, **about, "measure": "pass@8", "value": 0.75, **ends},
        {"variant": "rank_2", "step": 24, **about, "measure": "avg@16", "value": 0.2, **ends},  # scored nowhere else
    ]
    pd.DataFrame(rows).to_parquet(metrics_file(paths.benchmarks))
    track(results, study, uri_of(results))
    runs = runs_of(results)
    place = "benchmark/gsm8k/t0.6/exact_match/strict-match"
    full = runs["demo/tiny-llama/grpo/0/full"].data.metrics
    assert (full[f"{place}/avg_16"], full[f"{place}/avg_16_low"], full[f"{place}/pass_8"]) == (0.25, 0.1, 0.75)
    assert "accuracy/t1.0" in full
    assert runs["demo/tiny-llama/grpo/0/rank_2"].data.metrics[f"{place}/avg_16"] == 0.2


def test_tables_and_figures_are_artifacts_beside_the_database(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    client, run = MlflowClient(uri_of(results)), runs_of(results)["demo"].info.run_id
    assert "tables/accuracy.csv" in [file.path for file in client.list_artifacts(run, "tables")]
    assert [file.path for file in client.list_artifacts(run, "figures")] == ["figures/accuracy_over_rank.png"]
    kept = list((results.parent / "mlflow-artifacts").rglob("accuracy.csv"))
    assert [file.read_bytes() for file in kept] == [(results / "tables/accuracy.csv").read_bytes()]


def test_tracking_again_adds_no_run_and_no_point(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    before = {key: run.info.run_id for key, run in runs_of(results).items()}, metric_points(results)
    track(results, study, uri_of(results))
    assert ({key: run.info.run_id for key, run in runs_of(results).items()}, metric_points(results)) == before


def test_a_run_that_was_left_unfinished_is_completed_without_double_points(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    points, runs = metric_points(results), runs_of(results)
    client, cell = MlflowClient(uri_of(results)), "demo/tiny-llama/grpo/0"
    client.delete_tag(runs[cell].info.run_id, CONTENT_TAG)
    with sqlite3.connect(results.parent / "mlflow.db") as database:
        run_id = (runs[cell].info.run_id,)
        database.execute("delete from metrics where key = 'train/reward' and step > 7 and run_uuid = ?", run_id)
        database.execute("delete from params where key = 'training.steps' and run_uuid = ?", run_id)
    assert metric_points(results) == points - (STEPS - 7)
    track(results, study, uri_of(results))
    completed = runs_of(results)[cell]
    assert metric_points(results) == points
    assert completed.info.run_id == runs[cell].info.run_id
    assert completed.data.params["training.steps"] == str(STEPS)


def test_a_cell_that_was_run_again_replaces_its_runs(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    before, points = runs_of(results), metric_points(results)
    write_cells(results, study, FEW | {"rank_1": 0.1})
    track(results, study, uri_of(results))
    after = runs_of(results)
    assert set(after) == set(before)
    assert metric_points(results) == points
    changed, same = "demo/tiny-llama/grpo/0/rank_1", "demo/tiny-llama/grpo/0/base"
    assert after[changed].data.metrics["accuracy/t1.0"] < 0.2 < before[changed].data.metrics["accuracy/t1.0"]
    assert after[same].info.run_id == before[same].info.run_id
    assert after[same].data.tags[PARENT_TAG] == after["demo/tiny-llama/grpo/0"].info.run_id


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from synthetic_study import synthetic_study
from rlstride.tracking.mlflow_writer import track

results, uri, name, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
original, calls = getattr(MlflowClient, name), []

def dies_at_its_nth_call(*args, **kwargs):
    calls.append(name)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(MlflowClient, name, dies_at_its_nth_call)
track(results, synthetic_study(models=["tiny-llama"], algorithms=["grpo"]), uri)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("call", "number"), [("log_batch", 1), ("set_tag", 4)])
def test_a_killed_tracking_is_completed_by_the_next(
    results: Path, study: Study, tmp_path: Path, call: str, number: int
) -> None:
    command = [warm_programs() / CODE, KILLED_AT, str(results), uri_of(results), call, str(number)]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    assert len(runs_of(results)) == number  # the last of them without all that it should hold
    track(results, study, uri_of(results))
    assert len(runs_of(results)) == 7
    track(results, study, f"sqlite:///{tmp_path / 'undisturbed.db'}")
    with sqlite3.connect(tmp_path / "undisturbed.db") as database:
        assert metric_points(results) == database.execute("select count(*) from metrics").fetchone()[0]


LOOKING_TOGETHER = """
import os, sys, time
from pathlib import Path
from mlflow import MlflowClient
from rlstride.cli import main

original, gate = MlflowClient.search_runs, Path(sys.argv[1])

def waits_until_both_have_looked(*args, **kwargs):
    found = original(*args, **kwargs)
    looked = gate / str(os.getpid())
    if not looked.exists():
        looked.touch()
        deadline = time.monotonic() + 8
        while len(list(gate.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    return found

MlflowClient.search_runs = waits_until_both_have_looked
sys.exit(main(sys.argv[2:]))
"""


def track_twice_at_once(folders: list[Path], uri: str, gate: Path) -> list[str]:
    """Two `rlstride track`, neither of which makes a run before the other has looked, if it can. What they say."""
    gate.mkdir()
    script = [warm_programs() / CODE, LOOKING_TOGETHER, str(gate)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    verbs = [["track", str(folder), "--tracking-uri", uri] for folder in folders]
    both = [subprocess.Popen([*script, *verb], env=environment, stderr=subprocess.PIPE, text=True) for verb in verbs]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return said


def all_keys() -> set[str]:
    cell = "demo/tiny-llama/grpo/0"
    return {"demo", "demo/tiny-llama/frozen/0", cell, *(f"{cell}/{name}" for name in FEW)}


@pytest.mark.slow
def test_two_at_once_on_a_new_database_leave_one_run_of_each_key_and_one_says_that_it_waits(
    results: Path, study: Study, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").unlink()
    said = track_twice_at_once([results, results], uri_of(results), tmp_path / "gate")
    assert set(runs_of(results)) == all_keys()
    assert sum("track: another process writes these runs; waits for it to end" in text for text in said) == 1


@pytest.mark.slow
def test_two_at_once_that_replace_old_runs_leave_one_run_of_each_key(
    results: Path, study: Study, tmp_path: Path
) -> None:
    track(results, study, uri_of(results))
    points = metric_points(results)
    write_cells(results, study, FEW | {"rank_1": 0.1})
    track_twice_at_once([results, results], uri_of(results), tmp_path / "gate")
    runs = runs_of(results)
    assert set(runs) == all_keys()
    assert runs["demo/tiny-llama/grpo/0/rank_1"].data.metrics["accuracy/t1.0"] < 0.2
    assert metric_points(results) == points


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """The address of an MLflow server that keeps runs in SQLite and takes artifacts."""
    shutil.copy(empty_database, tmp_path / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    where = ["--host", "127.0.0.1", "--port", address.partition(":")[2], "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination"]
    command = [sys.executable, "-m", "mlflow", "server", *where, *stores, str(tmp_path / "artifacts")]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        wait_until_it_answers(f"http://{address}/health", process)
        yield f"http://{address}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 2])  # of the results: on two machines, no lock keeps the writers apart
def test_two_at_once_on_a_server_leave_one_run_of_each_key_with_its_artifacts(
    results: Path, study: Study, tmp_path: Path, server: str, copies: int
) -> None:
    other = tmp_path / "elsewhere" / "demo"
    shutil.copytree(results, other)
    said = track_twice_at_once([results, other if copies == 2 else results], server, tmp_path / "gate")
    assert sum("waits for it to end" in text for text in said) == 2 - copies
    runs = runs_of(results, server)
    assert set(runs) == all_keys()
    parent = runs["demo/tiny-llama/grpo/0"].info.run_id
    assert {runs[f"demo/tiny-llama/grpo/0/{name}"].data.tags[PARENT_TAG] for name in FEW} == {parent}
    assert all(CONTENT_TAG in run.data.tags for run in runs.values())
    client = MlflowClient(server)
    local = Path(client.download_artifacts(runs["demo"].info.run_id, "tables/accuracy.csv", str(tmp_path)))
    assert local.read_bytes() == (results / "tables/accuracy.csv").read_bytes()


def test_of_twins_left_by_two_machines_the_older_stays_with_the_children(results: Path, study: Study) -> None:
    track(results, study, uri_of(results))
    before, client, cell = runs_of(results), MlflowClient(uri_of(results)), "demo/tiny-llama/grpo/0"
    older, younger = (
        client.create_run(before[cell].info.experiment_id, tags={KEY_TAG: key, CREATED_TAG: created}).info.run_id
        for key, created in ((cell, "1"), ("demo", str(time.time_ns())))
    )
    track(results, study, uri_of(results))
    after = runs_of(results)
    assert after[cell].info.run_id == older
    assert {after[f"{cell}/{name}"].data.tags[PARENT_TAG] for name in FEW} == {older}
    assert after[cell].data.metrics == before[cell].data.metrics
    assert after["demo"].info.run_id == before["demo"].info.run_id != younger


def test_results_on_a_disk_without_locks_are_tracked_all_the_same(
    results: Path, study: Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def answers_as_lustre_without_its_flock_option(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", answers_as_lustre_without_its_flock_option)
    monkeypatch.setattr("mlflow.utils.file_utils.ExclusiveFileLock", contextlib.nullcontext)  # MLflow's own needs it
    track(results, study, uri_of(results))
    assert "cannot be locked" in capfd.readouterr().err
    assert set(runs_of(results)) == all_keys()


def test_results_that_are_not_there_are_refused(tmp_path: Path, study: Study) -> None:
    with pytest.raises(RequestError, match="there is no such folder"):
        track(tmp_path / "nowhere", study, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not list(tmp_path.iterdir())


def test_a_plain_folder_is_refused_as_tracking_uri(results: Path, study: Study) -> None:
    with pytest.raises(RequestError, match="use a server"):
        track(results, study, "mlruns")


def test_the_address_of_each_studys_runs_is_said(
    results: Path, study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    track(results, study, uri_of(results))
    script = Path(__file__).parents[2] / "workflow/scripts/experiments.py"
    monkeypatch.setattr("sys.argv", [str(script), uri_of(results), "http://127.0.0.1:5000"])
    capsys.readouterr()
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    number = MlflowClient(uri_of(results)).get_experiment_by_name("demo").experiment_id
    assert said == f"demo   http://127.0.0.1:5000/#/experiments/{number}/runs\n"

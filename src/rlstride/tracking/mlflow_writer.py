"""The one writer to MLflow: experiment = study, parent run = cell, child runs = variants.

A run is found by its tag ``rlstride.key`` (study/model/algorithm/seed[/variant]). What it should hold is known before
anything is written, and its digest is the run's last tag: a run with the right digest is passed over, one without (new,
interrupted) gets what is missing, and one that holds something else (a cell was run again) is replaced.

Each key has one run. A lock keeps a second writer out until the first has ended. Where no lock reaches (two machines
and one server), each writer looks at a key again after making its run, and the younger of two is deleted.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from rlstride.errors import RequestError, WorkError
from rlstride.study.study import Study
from rlstride.tables.results import StudyResults
from rlstride.tracking.runs import TrackedRun, cell_runs, study_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import TrackedRun as MlflowRun

KEY_TAG, CONTENT_TAG, PARENT_TAG, NAME_TAG = "rlstride.key", "rlstride.content", "mlflow.parentRunId", "mlflow.runName"
CREATED_TAG = "rlstride.created"  # Unix time in ns at which the run was made; its start is that of the cell's first job
_METRICS_PER_CALL, _PARAMS_PER_CALL = 800, 100  # MLflow takes 100 parameters, and 1,000 things in all, in one call
_ATTEMPTS = 5  # at one run, while another writer logs to it too
_REMOTE = ("http://", "https://", "databricks")


def track(results_dir: Path, study: Study, tracking_uri: str) -> None:
    """Writes a study's ledgers, curves, accuracies, tables and figures to MLflow; run again, it adds what is new.

    It waits for another process that writes to the same database, or the same results to a server.

    Args:
        results_dir: results/{study}, after ``rlstride collect`` and, for the figures, ``rlstride report``.
        tracking_uri: a server, or a database such as sqlite:///results/mlflow.db, whose artifacts then go to
            mlflow-artifacts beside the study's folder.

    Raises:
        RequestError: there are no such results, or the URI is a plain folder, which MLflow no longer writes to.
        WorkError: MLflow refused something, or the server did not answer.
    """
    if "://" not in tracking_uri and not tracking_uri.startswith("databricks"):
        raise RequestError(
            f"tracking URI {tracking_uri!r}: use a server (http://...) or a database (sqlite:///{tracking_uri}.db)"
        )
    if not results_dir.is_dir():
        raise RequestError(f"{results_dir}: there is no such folder")
    keep_mlflow_silent()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with _alone(results_dir, tracking_uri):
        try:
            client = MlflowClient(tracking_uri=tracking_uri)
            writer = _Writer(client, _experiment(client, study.spec.name, results_dir, tracking_uri))
            _write_study(writer, results_dir, study)
            if writer.remove_younger_duplicates():
                _write_study(writer, results_dir, study)  # children of a parent that is gone get the one that stayed
        except MlflowException as error:
            raise WorkError(f"tracking URI {tracking_uri}: {' '.join(str(error).split())}") from error


def _write_study(writer: "_Writer", results_dir: Path, study: Study) -> None:
    results = StudyResults(results_dir, study)
    for cell in [*study.cells, *study.control_cells]:
        runs = cell_runs(results, cell)
        if not runs:
            continue
        parent = writer.write(runs[0])
        for run in runs[1:]:
            writer.write(run, parent)
    writer.write(study_run(results_dir, study))


@contextmanager
def _alone(results_dir: Path, tracking_uri: str) -> Iterator[None]:
    """Waits until no other process writes to the same SQLite file, or to a server from the same results.

    The operating system frees the lock of a process that is killed. Where it cannot lock a file, work goes on.
    """
    database = _sqlite_file(tracking_uri)
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)  # MLflow makes the file, but not the folder
    file = database.with_name(f".{database.name}.lock") if database else results_dir.resolve() / ".tracking.lock"
    # No lock by a file's mere existence, which outlives a process that is killed.
    lock = FileLock(file, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _say(f"another process writes these runs; waits for it to end ({file})")
            lock.acquire()
    except OSError as error:
        _say(f"{file} cannot be locked ({error}); a second writer is noticed later")
    try:
        yield
    finally:
        lock.release()


def _say(text: str) -> None:
    print(f"track: {text}", file=sys.stderr, flush=True)


def keep_mlflow_silent() -> None:
    """MLflow reports its use to its makers unless told not to, before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")


class _Writer:
    """Brings the runs of one experiment to the content that they should have."""

    def __init__(self, client: "MlflowClient", experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._known: dict[str, MlflowRun] = {}
        self.remove_younger_duplicates()

    def write(self, run: TrackedRun, parent: str | None = None) -> str:
        """Makes one run hold exactly ``run``. Returns its id."""
        found, digest = self._known.get(run.key), run.digest()
        if found is not None and found.data.tags.get(CONTENT_TAG) == digest:
            self._set_parent(found, parent)
            return str(found.info.run_id)
        missing = run.metrics if found is None else self._missing_metrics(found, run)
        if found is None or missing is None:
            if found is not None:
                self._client.delete_run(found.info.run_id)
            found, missing = self._create(run, parent), run.metrics
        self._set_parent(found, parent)
        run_id = str(found.info.run_id)
        self._log_beside_others(run_id, run, missing, found.data.params)
        for folder, files in run.artifacts.items():
            for file in files:
                self._client.log_artifact(run_id, str(file), folder)
        self._client.set_terminated(run_id, "FINISHED", end_time=run.ended)
        self._client.set_tag(run_id, CONTENT_TAG, digest)  # last: from here on the run is complete
        return run_id

    def remove_younger_duplicates(self) -> bool:
        """Looks at all runs of the experiment, and deletes all but the oldest of a key. Returns whether there were any.

        StridePair are left by writers that no lock keeps apart, and that were killed or whose clocks differ.
        """
        runs = sorted(self._search(), key=_age)
        self._known = {run.data.tags[KEY_TAG]: run for run in reversed(runs)}
        younger = [run for run in runs if self._known[run.data.tags[KEY_TAG]] is not run]
        for run in younger:
            self._client.delete_run(run.info.run_id)
        return bool(younger)

    def _search(self, key: str | None = None) -> "list[MlflowRun]":
        """The experiment's runs that have a key; those of one key where it is given."""
        runs: list[MlflowRun] = []
        token, having = None, "" if key is None else f'tags.`{KEY_TAG}` = "{key}"'
        while True:
            page = self._client.search_runs([self._experiment_id], having, max_results=1000, page_token=token)
            runs += [run for run in page if KEY_TAG in run.data.tags]
            token = page.token
            if not token:
                return runs

    def _create(self, run: TrackedRun, parent: str | None) -> "MlflowRun":
        """A new run; the older one where another writer has just made one too."""
        tags = {KEY_TAG: run.key, NAME_TAG: run.name, CREATED_TAG: str(time.time_ns()), **run.tags}
        tags |= {PARENT_TAG: parent} if parent else {}
        created: MlflowRun = self._client.create_run(
            self._experiment_id, start_time=run.started, tags=tags, run_name=run.name
        )
        oldest = min([created, *self._search(run.key)], key=_age)
        if oldest.info.run_id != created.info.run_id:
            self._client.delete_run(created.info.run_id)
        return oldest

    def _set_parent(self, found: "MlflowRun", parent: str | None) -> None:
        if parent and found.data.tags.get(PARENT_TAG) != parent:
            self._client.set_tag(found.info.run_id, PARENT_TAG, parent)

    def _missing_metrics(self, found: "MlflowRun", run: TrackedRun) -> dict[tuple[str, int], tuple[float, int]] | None:
        """What an earlier, interrupted attempt has not written; None where the run holds anything else."""
        params = found.data.params
        if any(params[name] != run.params.get(name) for name in params):
            return None
        missing = dict(run.metrics)
        for name in found.data.metrics:
            for point in self._client.get_metric_history(found.info.run_id, name):
                expected = missing.pop((name, point.step), None)
                if expected is None or expected[0] != point.value:
                    return None
        return missing

    def _log_beside_others(
        self,
        run_id: str,
        run: TrackedRun,
        metrics: Mapping[tuple[str, int], tuple[float, int]],
        known_params: Mapping[str, str],
    ) -> None:
        """Logs what is missing; what another writer has just logged to the same run is read, and not logged again."""
        from mlflow.exceptions import MlflowException

        for attempt in range(_ATTEMPTS):
            try:
                return self._log(run_id, run, metrics, known_params)
            except MlflowException:
                if attempt == _ATTEMPTS - 1:
                    raise
                found = self._client.get_run(run_id)
                missing = self._missing_metrics(found, run)
                if missing is None or (missing == metrics and found.data.params == known_params):
                    raise  # nothing was added meanwhile: it failed for another reason
                metrics, known_params = missing, found.data.params

    def _log(
        self,
        run_id: str,
        run: TrackedRun,
        metrics: Mapping[tuple[str, int], tuple[float, int]],
        known_params: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(name, value) for name, value in run.params.items() if name not in known_params]
        points = [Metric(name, value, timestamp, step) for (name, step), (value, timestamp) in metrics.items()]
        tags = [RunTag(name, value) for name, value in run.tags.items()]
        calls = max(1, -(-len(params) // _PARAMS_PER_CALL), -(-len(points) // _METRICS_PER_CALL))
        for i in range(calls):
            self._client.log_batch(
                run_id,
                metrics=points[i * _METRICS_PER_CALL : (i + 1) * _METRICS_PER_CALL],
                params=params[i * _PARAMS_PER_CALL : (i + 1) * _PARAMS_PER_CALL],
                tags=tags if i == 0 else [],
            )


def _age(run: "MlflowRun") -> tuple[int, str]:
    """Sorts runs by when they were made; all writers agree on the order of two of the same moment."""
    return int(run.data.tags.get(CREATED_TAG, 0)), str(run.info.run_id)


def _experiment(client: "MlflowClient", name: str, results_dir: Path, tracking_uri: str) -> str:
    """The study's experiment, made if need be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        beside = (results_dir.parent / "mlflow-artifacts").resolve().as_uri()
        place = None if tracking_uri.startswith(_REMOTE) else beside
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # made by another writer in between
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a SQLite database such as sqlite:///results/mlflow.db; None of anything else."""
    parts = urlsplit(tracking_uri)
    path = parts.path.removeprefix("/")
    if parts.scheme.split("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(path).resolve()

"""The one writer to MLflow: experiment = study, parent run = cell, child runs = variants.

A run is found by its tag ``rlstride.key`` (study/model/algorithm/seed[/variant]). What it should hold is known before
anything is written, and its digest is the run's last tag: a run with the right digest is passed over, one without (new,
interrupted) gets what is missing, and one that holds something else (a cell was run again) is replaced.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlstride.errors import RequestError, WorkError
from rlstride.study.load import Study
from rlstride.tracking.runs import Run, cell_runs, study_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

KEY_TAG, CONTENT_TAG, PARENT_TAG, NAME_TAG = "rlstride.key", "rlstride.content", "mlflow.parentRunId", "mlflow.runName"
_METRICS_PER_CALL, _PARAMS_PER_CALL = 800, 100  # MLflow takes 100 parameters, and 1,000 things in all, in one call
_REMOTE = ("http://", "https://", "databricks")


def track(results_dir: Path, study: Study, tracking_uri: str) -> None:
    """Writes a study's ledgers, curves, accuracies, tables and figures to MLflow; run again, it adds what is new.

    Args:
        results_dir: results/{study}, after ``rlstride collect`` and, for the figures, ``rlstride report``.
        tracking_uri: a server, or a database such as sqlite:///results/mlflow.db, whose artifacts then go to
            mlflow-artifacts beside the study's folder.

    Raises:
        RequestError: the URI is a plain folder, which MLflow no longer writes to.
        WorkError: MLflow refused something, or the server did not answer.
    """
    if "://" not in tracking_uri and not tracking_uri.startswith("databricks"):
        raise RequestError(
            f"tracking URI {tracking_uri!r}: use a server (http://...) or a database (sqlite:///{tracking_uri}.db)"
        )
    keep_mlflow_silent()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        _prepare_database(tracking_uri)
        client = MlflowClient(tracking_uri=tracking_uri)
        writer = _Writer(client, _experiment(client, study.spec.name, results_dir, tracking_uri))
        for cell in [*study.cells, *study.control_cells]:
            runs = cell_runs(results_dir, study, cell)
            if not runs:
                continue
            parent = writer.write(runs[0])
            for run in runs[1:]:
                writer.write(run, parent)
        writer.write(study_run(results_dir, study))
    except MlflowException as error:
        raise WorkError(f"tracking URI {tracking_uri}: {' '.join(str(error).split())}") from error


def keep_mlflow_silent() -> None:
    """MLflow reports its use to its makers unless told not to, before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")


class _Writer:
    """Brings the runs of one experiment to the content that they should have."""

    def __init__(self, client: "MlflowClient", experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._known = self._find_runs()

    def write(self, run: Run, parent: str | None = None) -> str:
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
        self._log(run_id, run, missing, found.data.params)
        for folder, files in run.artifacts.items():
            for file in files:
                self._client.log_artifact(run_id, str(file), folder)
        self._client.set_terminated(run_id, "FINISHED", end_time=run.ended)
        self._client.set_tag(run_id, CONTENT_TAG, digest)  # last: from here on the run is complete
        return run_id

    def _find_runs(self) -> "dict[str, MlflowRun]":
        """The experiment's runs by key; the oldest where two have the same."""
        runs: dict[str, MlflowRun] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], order_by=["attributes.start_time ASC"], max_results=1000, page_token=token
            )
            for run in page:
                if KEY_TAG in run.data.tags:
                    runs.setdefault(run.data.tags[KEY_TAG], run)
            token = page.token
            if not token:
                return runs

    def _create(self, run: Run, parent: str | None) -> "MlflowRun":
        tags = {KEY_TAG: run.key, NAME_TAG: run.name, **run.tags} | ({PARENT_TAG: parent} if parent else {})
        created: MlflowRun = self._client.create_run(
            self._experiment_id, start_time=run.started, tags=tags, run_name=run.name
        )
        return created

    def _set_parent(self, found: "MlflowRun", parent: str | None) -> None:
        if parent and found.data.tags.get(PARENT_TAG) != parent:
            self._client.set_tag(found.info.run_id, PARENT_TAG, parent)

    def _missing_metrics(self, found: "MlflowRun", run: Run) -> dict[tuple[str, int], tuple[float, int]] | None:
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

    def _log(
        self,
        run_id: str,
        run: Run,
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


def _experiment(client: "MlflowClient", name: str, results_dir: Path, tracking_uri: str) -> str:
    """The study's experiment, made if need be."""
    found = client.get_experiment_by_name(name)
    if found is None:
        beside = (results_dir.parent / "mlflow-artifacts").resolve().as_uri()
        place = None if tracking_uri.startswith(_REMOTE) else beside
        return str(client.create_experiment(name, artifact_location=place))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _prepare_database(tracking_uri: str) -> None:
    """A SQLite file's folder; MLflow makes the file, but not the folder."""
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)

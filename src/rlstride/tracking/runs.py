"""What MLflow should hold of a study, read from its folder: runs with parameters, curves and artifacts."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from rlstride.atomic_files import sha256
from rlstride.config.variants import parse_ablation
from rlstride.study.paths import StudyPaths
from rlstride.study.plan import planned_jumps, predictions
from rlstride.study.study import Cell, Study
from rlstride.tables.results import CellResults, StudyResults
from rlstride.tables.rounding import rounding_rows
from rlstride.tables.specs import TABLES
from rlstride.tables.table import CELL_COLUMNS
from rlstride.trajectory.manifest import Manifest

Metrics = dict[tuple[str, int], tuple[float, int]]  # (name, step) to (value, Unix time in ms)
_VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not run")
_LONGEST_PARAM = 6000  # MLflow's limit, in characters


@dataclass(frozen=True)
class TrackedRun:
    """One run as it should be.

    Attributes:
        key: study/model/algorithm/seed[/variant]: finds it again.
        name: what MLflow's pages show.
        started, ended: Unix times in ms.
        artifacts: files by folder.
    """

    key: str
    name: str
    started: int
    ended: int
    params: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, list[Path]] = field(default_factory=dict)

    def digest(self) -> str:
        """Of everything that the run holds; times left out, since they do not change what was found."""
        metrics = sorted((name, step, value) for (name, step), (value, _) in self.metrics.items())
        files = sorted((folder, file.name, sha256(file)) for folder, files in self.artifacts.items() for file in files)
        content = json.dumps([self.params, metrics, self.tags, files], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def cell_runs(results: StudyResults, cell: Cell) -> list[TrackedRun]:
    """A cell's run, and one for each variant that was scored; empty where the cell has no finished trajectory."""
    study, measured = results.study, results.of(cell)
    manifest, ledger = measured.manifest, measured.ledger
    if manifest is None:
        return []
    started, ended = _times(ledger, measured.paths.manifest)
    parent = TrackedRun(
        key=_key(study, cell),
        name=str(cell),
        started=started,
        ended=ended,
        params=_cell_params(study, cell, manifest),
        metrics=_training_metrics(manifest, started)
        | _validation_metrics(measured.validation, manifest, started)
        | _spectra_metrics(measured, started)
        | _drift_metrics(measured.drift, started)
        | _rounding_metrics(measured, started)
        | _cost_metrics(ledger, started),
        tags={"rlstride.kind": "cell", "mlflow.note.content": f"{cell.algorithm} on {cell.model}, seed {cell.seed}"},
    )
    return [parent, *_variant_runs(study, measured, started, ended)]


def study_run(results_dir: Path, study: Study) -> TrackedRun:
    """The run that holds the study's tables, figures and page, and how many claims have each verdict."""
    paths = StudyPaths(results_dir)
    artifacts = {
        "tables": sorted(paths.tables.glob("*.csv")),
        "figures": sorted(file for kind in ("png", "svg", "csv") for file in paths.report.glob(f"figures/*.{kind}")),
        "report": sorted(paths.report.glob("index.html")),
    }
    files = [file for folder in artifacts.values() for file in folder]
    time = max((int(file.stat().st_mtime * 1000) for file in files), default=0)
    claims = paths.tables / "claims.csv"
    found = list(pd.read_csv(claims)["verdict"]) if claims.is_file() else []
    verdicts = {f"rlstride.claims.{name.replace(' ', '_')}": str(found.count(name)) for name in _VERDICTS}
    return TrackedRun(
        key=study.spec.name,
        name=f"{study.spec.name}: tables and figures",
        started=time,
        ended=time,
        params=_flat("", study.spec.model_dump(mode="json", include={"task", "models", "algorithms", "seeds"})),
        tags={"rlstride.kind": "study", **verdicts},
        artifacts={folder: files for folder, files in artifacts.items() if files},
    )


def _variant_runs(study: Study, measured: CellResults, started: int, ended: int) -> Iterator[TrackedRun]:
    cell, frames = measured.cell, [frame for frame in (measured.tests, measured.benchmarks) if not frame.empty]
    for variant in dict.fromkeys(name for frame in frames for name in frame["variant"]):
        metrics: Metrics = {}
        rows = [row for frame in frames for row in frame[frame["variant"] == variant].to_dict("records")]
        for row in rows:
            for name, value in _benchmark_values(row) if "measure" in row else _accuracy_values("", row):
                metrics |= _point(name, int(row["step"]), value, ended)
        yield TrackedRun(
            key=f"{_key(study, cell)}/{variant}",
            name=f"{cell} {variant}",
            started=started,
            ended=ended,
            params={"variant": str(variant), "model": cell.model, "algorithm": cell.algorithm, "seed": str(cell.seed)}
            | {"step": str(max(int(row["step"]) for row in rows))}
            | _variant_params(study, str(variant)),
            metrics=metrics,
            tags={"rlstride.kind": "variant"},
        )


def _variant_params(study: Study, variant: str) -> dict[str, str]:
    for prediction in predictions(study.spec):
        if prediction.variant == variant:
            return {"method": prediction.method, "window": f"{prediction.window:g}"}
    for name, planned in planned_jumps(study.spec).items():
        if planned.variant == variant:
            jump = planned.jump
            return {"jump": name, "method": jump.method, "window": f"{jump.window:g}", "until": f"{jump.end:g}"}
    try:
        edit = parse_ablation(variant)
    except ValueError:  # base, frozen, full: not an edit
        return {}
    rank = f"{edit.percent:g} %" if edit.percent is not None else "full" if edit.rank is None else str(edit.rank)
    params = {"rank": rank, "scope": edit.scope, "scale": f"{edit.scale:g}"}
    params |= {} if edit.source == "stored" else {"update": edit.source}
    params |= {} if edit.norm_of is None else {"norm_of_rank": str(edit.norm_of)}
    if rank == "full":
        return params
    return params | {"first_triplet": str(edit.first), "rescale": edit.rescale, "directions": edit.directions}


def _cell_params(study: Study, cell: Cell, manifest: Manifest) -> dict[str, str]:
    params = {"model": cell.model, "algorithm": cell.algorithm, "seed": str(cell.seed), "task": study.spec.task}
    params |= _flat("algorithm.", study.algorithm(cell).model_dump(mode="json"))
    params |= _flat("training.", study.spec.training.model_dump(mode="json"))
    params |= _flat("model.", study.models[cell.model].model_dump(mode="json"))
    params |= {f"library.{name}": number for name, number in manifest.libraries.items()}
    return params | {"config_hash": manifest.config_hash}


def _training_metrics(manifest: Manifest, started: int) -> Metrics:
    metrics: Metrics = {}
    elapsed = 0.0
    for record in manifest.training:
        elapsed += record.seconds
        time = started + int(1000 * elapsed)
        for name, value in (("reward", record.reward), ("tokens", record.tokens), ("seconds", record.seconds)):
            if value is not None:
                metrics |= _point(f"train/{name}", record.step, float(value), time)
    return metrics


def _validation_metrics(frame: pd.DataFrame, manifest: Manifest, started: int) -> Metrics:
    seconds = {record.step: record.seconds or 0.0 for record in manifest.steps}
    metrics: Metrics = {}
    for row in frame.to_dict("records"):
        step = int(row["step"])
        for name, value in _accuracy_values("validation/", row):
            metrics |= _point(name, step, value, started + int(1000 * seconds.get(step, 0.0)))
    return metrics


def _spectra_metrics(measured: CellResults, started: int) -> Metrics:
    frame = measured.spectra
    metrics: Metrics = {}
    if frame.empty:
        return metrics
    for step, rows in frame[frame["in_scope"]].groupby("step"):
        for name in ("share_1", "stable_rank"):
            metrics |= _point(f"spectra/{name}_mean", int(str(step)), float(rows[name].mean()), started)
    return metrics


def _drift_metrics(frame: pd.DataFrame, started: int) -> Metrics:
    """How far the base (0, by definition) and the kept steps are from the base; edited models are in the table."""
    metrics: Metrics = {}
    for row in frame.to_dict("records"):
        if row["variant"] in ("base", "checkpoint"):
            for name in ("kl_to_base", "kl_from_base", "argmax_changed"):
                metrics |= _point(f"drift/{name}", int(row["step"]), float(row[name]), started)
    return metrics


def _rounding_metrics(measured: CellResults, started: int) -> Metrics:
    """Size, norm share and sparsity of the run's updates, as stored and as bfloat16 files show them."""
    table = rounding_rows(measured)
    metrics: Metrics = {}
    rows = table if table.empty else table[(table["update"] == "run") & (table["factor"] == 1)]
    for row in rows.to_dict("records"):
        for name in ("relative", "share_sum", "unchanged_1e-05"):
            metrics |= _point(f"rounding/{name}/{row['dtype']}", int(row["step"]), float(row[name]), started)
    return metrics


def _cost_metrics(ledger: list[dict[str, Any]], started: int) -> Metrics:
    """Seconds of each stage, all its finished jobs together, and the largest memory of one."""
    metrics: Metrics = {}
    for stage in sorted({str(entry["stage"]) for entry in ledger}):
        done = [entry for entry in ledger if entry["stage"] == stage and entry["status"] == "done"]
        if done:
            metrics |= _point(f"cost/{stage}_seconds", 0, sum(float(entry["seconds"]) for entry in done), started)
            memory = max(float(entry["peak_rss_mib"]) for entry in done)
            metrics |= _point(f"cost/{stage}_peak_rss_mib", 0, memory, started)
    return metrics


def _accuracy_values(prefix: str, row: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    """An accuracy row's figures as metrics such as validation/accuracy_low/t1.0."""
    names = {"accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    known = {*CELL_COLUMNS, *TABLES["accuracy"].columns}
    names |= {str(name): str(name) for name, value in row.items() if name not in known and isinstance(value, float)}
    for column, name in names.items():
        yield f"{prefix}{name}/{row['decoding']}", float(row[column])


def _benchmark_values(row: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    """A benchmark's figures as metrics such as benchmark/gsm8k/t0.6/exact_match/strict-match/avg_16."""
    parts = (str(row[name]) for name in ("task", "decoding", "metric", "filter", "measure"))
    place = [part.replace("@", "_") for part in parts if part]  # MLflow's names have no @
    for column, ending in {"value": "", "low": "_low", "high": "_high"}.items():
        yield "/".join(["benchmark", *place]) + ending, float(row[column])


def _point(name: str, step: int, value: float, time: int) -> Metrics:
    return {} if math.isnan(value) else {(name, step): (value, time)}


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Nested mappings as dotted names."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(f"{prefix}{name}.", value)
        else:
            flat[f"{prefix}{name}"] = str(value)[:_LONGEST_PARAM]
    return flat


def _times(ledger: list[dict[str, Any]], manifest: Path) -> tuple[int, int]:
    """When the cell's first job started and its last one ended, in ms."""
    spans = [(datetime.fromisoformat(str(entry["started"])).timestamp(), float(entry["seconds"])) for entry in ledger]
    if not spans:
        written = manifest.stat().st_mtime
        spans = [(written, 0.0)]
    first = min(start for start, _ in spans)
    return int(1000 * first), int(1000 * max(start + seconds for start, seconds in spans))


def _key(study: Study, cell: Cell) -> str:
    return f"{study.spec.name}/{cell}"

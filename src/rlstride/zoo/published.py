"""Bases that exist already: a folder's, the hub's or a package's model, perhaps after a cold start on its task."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlstride.atomic_files import atomic_folder
from rlstride.config.models import PackageFile, PublishedModel
from rlstride.config.section import digest
from rlstride.errors import RequestError
from rlstride.ledger import ledger_entry
from rlstride.outputs import BASE_MARK, CARD, require_free_folder
from rlstride.study.paths import SOURCE_REPORT, source_folder
from rlstride.study.study import Study
from rlstride.tasks import build_task
from rlstride.tasks.rendering import renderer
from rlstride.trajectory.filling import load_model
from rlstride.trajectory.manifest import TrainingRecord
from rlstride.trajectory.sources.hub import HubAddress, fetch
from rlstride.trajectory.writer import TrajectoryWriter
from rlstride.zoo.base_folder import COLD_START_FOLDER, Report, describe_base, parameters, start_cold, write_base
from rlstride.zoo.characters import lacking_characters
from rlstride.zoo.packages import load_package_file

_COLD_START_SEED = 0


def fetch_source(study: Study, name: str, out: Path, *, force: bool = False) -> None:
    """Brings a published model here, as a Hugging Face folder with fp32 weights, and its tokenizer.

    Args:
        study: has the model.
        name: of the model.
        out: the folder. One of an earlier call that has lost its report is replaced.
        force: replace one that is whole, too.

    Raises:
        RequestError: the study has no such model, it is a tiny one, it cannot be had, or ``out`` is not empty.
    """
    spec = study.models.get(name)
    if not isinstance(spec, PublishedModel):
        published = [other for other, model in study.models.items() if isinstance(model, PublishedModel)]
        raise RequestError(
            f"{study.path}: models: {name!r} is no published model; the study has {', '.join(published) or 'none'}"
        )
    require_free_folder(out, "a model", BASE_MARK, force=force, finished=SOURCE_REPORT)
    with ledger_entry(out.parent / "ledger" / out.name, "fetch", model=name) as found:
        model, tokenizer, report = load_published(name, spec)
        with atomic_folder(out) as partial:
            write_base(partial, name, model, tokenizer, report, file=SOURCE_REPORT)
        found |= report


def load_published(name: str, spec: PublishedModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Report]:
    """A base that exists already, as fp32 masters, by the reader that takes runs apart.

    Raises:
        RequestError: the folder, repository or package cannot be loaded.
    """
    try:
        if isinstance(spec.source, PackageFile):
            model, tokenizer = load_package_file(spec.source)
        else:
            folder = _folder_of(spec.source, spec.revision)
            tokenizer, model = AutoTokenizer.from_pretrained(folder), load_model(folder, torch.float32)
    except (OSError, ValueError, RequestError) as error:
        raise RequestError(
            f"models.yaml: {name}.source: {spec.source} cannot be loaded ({' '.join(str(error).split())})"
        ) from error
    return model, tokenizer, {"parameters": parameters(model)}


def make_published_base(study: Study, name: str, spec: PublishedModel, out: Path, found: dict[str, Any]) -> None:
    """The base of a published model: the model itself, or what a cold start on the study's task makes of it.

    Args:
        study: has the task.
        name: of the model.
        spec: its entry.
        out: the base's folder.
        found: receives what becomes known.

    Raises:
        RequestError: the model cannot be had, or its task has no solutions to start on.
        WorkError: the cold start did not gain what it should.
    """
    source, task = _brought(study, name, spec), build_task(study.spec.task, study.task)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if lacks := lacking_characters(tokenizer, task):
        print(f"models.yaml: {name}.source: {spec.source}: {lacks}: expect no reward on it", file=sys.stderr)
    render = renderer(tokenizer, spec.chat)
    with atomic_folder(out) as partial:
        if spec.cold_start is None and (source / SOURCE_REPORT).is_file():
            report: Report = json.loads((source / SOURCE_REPORT).read_text())
            _share_files(source, partial)
            describe_base(partial, name, report)
        else:
            model = load_model(source, torch.float32)
            report = {"parameters": parameters(model)}
            if spec.cold_start is not None:
                kept = _ColdStartKept(source, partial, model, spec)
                report |= start_cold(
                    name, spec.cold_start, model, tokenizer, task, _COLD_START_SEED, render, kept.on_step
                )
                kept.finish(name)
            write_base(partial, name, model, tokenizer, report)
    found |= report


class _ColdStartKept:
    """Keeps a cold start as a trajectory, so that it can be taken apart as RL is."""

    def __init__(self, source: Path, base: Path, model: PreTrainedModel, spec: PublishedModel) -> None:
        self._source, self._model, self._spec = source, model, spec
        self._folder = base / COLD_START_FOLDER
        self._records: list[TrainingRecord] = []

    def on_step(self, step: int, seconds: float) -> None:
        recipe = self._spec.cold_start
        if recipe is None or recipe.keep_every is None:
            return
        self._records.append(TrainingRecord(step=step, reward=None, tokens=0, seconds=seconds))
        if step % recipe.keep_every == 0 or step == recipe.max_steps:
            TrajectoryWriter(self._folder).keep(step, self._model)

    def finish(self, name: str) -> None:
        if not self._records:
            return
        TrajectoryWriter(self._folder).finish(
            name,
            self._source,
            algorithm="cold_start",
            seed=_COLD_START_SEED,
            config_hash=digest(self._spec.model_dump(mode="json")),
            training=self._records,
        )


def _brought(study: Study, name: str, spec: PublishedModel) -> Path:
    """Where the model lies on this machine: its own folder, or the one that it was fetched to, now at the latest."""
    out = source_folder(study, name)
    if out is None:
        return Path(str(spec.source))
    if not (out / SOURCE_REPORT).is_file():
        fetch_source(study, name, out)
    return out


def _folder_of(source: str, revision: str | None) -> Path:
    return Path(source) if Path(source).is_dir() else fetch(HubAddress(source, revision))


def _share_files(source: Path, target: Path) -> None:
    """The same files in two folders: links where the file system has them, so that no weights lie there twice."""
    for file in source.iterdir():
        if file.name in (SOURCE_REPORT, CARD) or not file.is_file():
            continue
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)

"""Says what a path is: a trajectory, a run of another trainer, or a single checkpoint; and what is wrong with it."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.trajectory.architecture import CONFIG
from rlstride.trajectory.compare import misfits, parameters_by_dtype
from rlstride.trajectory.description import TOKENIZERS, describe_step, description_folder
from rlstride.trajectory.layout import InLayout, absent, read_layout
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.names import ModelTensors
from rlstride.trajectory.scope import listed, scope_of, weights_of
from rlstride.trajectory.sources.formats import ADAPTER, HF
from rlstride.trajectory.sources.hf import open_safetensors, read_json
from rlstride.trajectory.sources.hub import HubAddress, fetch, is_address
from rlstride.trajectory.sources.lora import WEIGHTS, adapter_config
from rlstride.trajectory.sources.quantised import refuse_quantised_config
from rlstride.trajectory.sources.recognise import Checkpoint, find_checkpoint
from rlstride.trajectory.sources.source import remark_on
from rlstride.trajectory.steps import holds_weights, inner_steps, step_of
from rlstride.trajectory.store import Trajectory

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_LAYER = re.compile(r"(.*\.(?:layers|h|blocks))\.(\d+)\.(.+)")


@dataclass
class Inspection:
    """What is to be said of a path: facts, and problems, a sentence each.

    Attributes:
        source: the tensors of a single checkpoint that could be opened.
    """

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    source: InLayout | None = None


def inspect(place: str, base: str | None = None, model_key: str | None = None) -> Inspection:
    """Looks at a path or an address on the hub, without reading weights: NaN, for one, is not looked for.

    A trajectory's files are compared with its manifest: where size or time changed, by their SHA-256.

    Args:
        place: a trajectory, a folder of steps, a checkpoint, or ``hf://org/repo@revision``.
        base: the model that the checkpoints should fit; a trajectory knows its own.
        model_key: what precedes the names of the model that is meant, where checkpoints hold several that fit.

    Raises:
        RequestError: the path does not exist, or nothing known is there.
    """
    path = _local(place)
    if not path.is_dir():
        raise RequestError(f"{path}: there is no such folder")
    if (path / "manifest.json").is_file():
        return _trajectory(path)
    start, problems = None, list[str]()
    if base is not None:
        start = ModelFolder(_local(base))
        problems = start.stored.problems() or start.problems()
    if problems:
        return Inspection(problems=[f"base: {problem}" for problem in problems])
    if steps := inner_steps(path):
        return _run(path, steps, start, model_key)
    findings = _checkpoint(path, start, model_key)
    if findings is None:
        raise RequestError(f"{path}: neither a trajectory, nor a checkpoint or a run of a kind that can be read")
    return findings


def _local(place: str) -> Path:
    return fetch(HubAddress.parse(place)) if is_address(place) else Path(place)


def _trajectory(path: Path) -> Inspection:
    trajectory = Trajectory(path)
    manifest = trajectory.manifest
    findings = Inspection()
    findings.facts.append(f"trajectory, format {manifest.format_version}: {manifest.algorithm}, seed {manifest.seed}")
    findings.facts.append(f"base: {manifest.base.name}, {trajectory.base_folder}")
    findings.facts += [f"tokenizer of its own: {trajectory.tokenizer_folder}"] if manifest.tokenizer else []
    findings.facts.append(f"steps: {_listed(trajectory.steps)}")
    findings.problems += _changed(trajectory, 0)
    start = _start(trajectory.base_folder, findings)
    if start is None:
        return findings
    for step in trajectory.steps:
        findings.problems += _changed(trajectory, step)
        if not all(file.is_file() for file in trajectory.files(step)):
            continue
        found = _opened(trajectory.checkpoint(step), start, trajectory.record(step).model_key)
        findings.problems += found.problems
        findings.facts.append(f"step {step}: {'; '.join(found.facts[:2])}")
    return findings


def _changed(trajectory: Trajectory, step: int) -> list[str]:
    """What is wrong with the files of a step, of which the manifest has digests."""
    try:
        trajectory.digests(step)
    except RequestError as error:
        return [str(error)]
    return []


def _start(folder: Path, findings: Inspection) -> ModelFolder | None:
    """The base, described; None where it cannot be read."""
    try:
        start = ModelFolder(folder)
        problems = start.stored.problems() or start.problems()
        findings.facts += [] if problems else _facts(start.source)
    except RequestError as error:
        findings.problems.append(f"base: {error}")
        return None
    findings.problems += problems + _missing_files(folder)
    return None if problems else start


def _run(path: Path, steps: dict[int, Path], start: ModelFolder | None, key: str | None) -> Inspection:
    findings = Inspection([f"run of {len(steps)} steps: {_listed(list(steps))}"])
    if holds_weights(path):
        findings.facts.append("the model in the run's own folder has no step's number, and is none of them")
    first: tuple[int, InLayout] | None = None  # without a base, what the other steps should be like
    for step, folder in steps.items():
        found = _checkpoint(folder, start, key) or Inspection(problems=[f"{folder}: there is no checkpoint in it"])
        findings.facts += [f"step {step}: {'; '.join(found.facts[:2])}"] if found.facts else []
        findings.problems += found.problems
        if start is None and found.source is not None:
            findings.problems += misfits(found.source, first[1], f"step {first[0]}") if first else []
            first = first or (step, found.source)
    return findings


def _checkpoint(path: Path, start: ModelFolder | None, key: str | None) -> Inspection | None:
    try:
        checkpoint = find_checkpoint(path)
    except RequestError as error:
        return Inspection(problems=[str(error)])
    if checkpoint is None:
        return None
    findings = _opened(checkpoint, start, key)
    if checkpoint.format is HF and step_of(path.resolve().name) is None:
        findings.problems += _missing_files(checkpoint.path)
    return findings


def _opened(checkpoint: Checkpoint, start: ModelFolder | None, key: str | None = None) -> Inspection:
    findings = Inspection([checkpoint.format.about])
    try:
        if checkpoint.format is ADAPTER:
            findings.facts += _adapter_facts(checkpoint.path)
            if start is None:
                return findings
        stored = checkpoint.open(start.tensors if start else None)
        findings.facts[0] += f", {remark}" if (remark := remark_on(stored)) else ""
        findings.problems += stored.problems()
        if findings.problems:
            return findings
        source = findings.source = _source(checkpoint, start, key)
        if checkpoint.format is not ADAPTER:
            findings.facts += _facts(source)
        if start is not None:
            findings.problems += misfits(source, start.source)
            findings.facts += describe_step(checkpoint, start).remarks
        else:
            findings.problems += _gaps(source)
        if isinstance(source.stored, ModelTensors):
            extra, problems = source.stored.extra, findings.problems
            findings.facts += [f"none of the model's, and left out: {listed(extra)}"] if extra else []
            problems += source.stored.untied()
            if problems and (hint := source.stored.hint()):
                problems[0] += f" ({hint})"
    except RequestError as error:
        findings.problems.append(str(error))
    return findings


def _source(checkpoint: Checkpoint, start: ModelFolder | None, key: str | None) -> InLayout:
    """A checkpoint's tensors; without a base, as the config beside it says."""
    if start is not None:
        return start.step(checkpoint, key)
    folder = description_folder(checkpoint.path)
    if folder is not None:
        refuse_quantised_config(read_json(folder / CONFIG), folder / CONFIG)
    layout = read_layout(folder or checkpoint.path)
    return InLayout(ModelTensors(checkpoint.open(None), layout, key=key), layout)


def _facts(source: InLayout) -> list[str]:
    dtypes = parameters_by_dtype(source)
    stored = ", ".join(f"{count:,} in {dtype}" for dtype, count in dtypes.items())
    facts = [f"{len(source.names())} tensors, {sum(dtypes.values()):,} parameters ({stored})"]
    weights = weights_of(source)
    outside = sorted({weight.module for weight in weights if not weight.in_scope and len(weight.shape) > 1})
    facts.append(f"in scope: {scope_of(weights)}; outside of it, but for vectors: {listed(outside) or 'nothing'}")
    shapes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name in source.names():
        shapes[_INDEX.sub("*", name), source.shape(name)] += 1
    facts += [f"  {count} x {name} {_shape(shape)}" for (name, shape), count in sorted(shapes.items())]
    return facts


def _adapter_facts(path: Path) -> list[str]:
    config = adapter_config(path)
    with open_safetensors(path / WEIGHTS) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    count = sum(math.prod(shape) for shape in shapes.values())
    return [
        f"{len(shapes)} tensors, {count:,} parameters; r = {config.get('r')}, alpha = {config.get('lora_alpha')}",
        f"base: {config.get('base_model_name_or_path')}; give it as --base to check the adapter against it",
    ]


def _gaps(source: InLayout) -> list[str]:
    """Tensors of the model that are not there, by its config; without one, those that every other layer has."""
    layout = source.layout
    if layout.architecture is not None:
        return [f"{source.path}: there is no {name}" for name in absent(source)]
    layers: dict[tuple[str, int], set[str]] = {}
    for name in source.names():
        if found := _LAYER.fullmatch(name):
            layers.setdefault((found[1], int(found[2])), set()).add(found[3])
    missing = []
    for (stem, layer), own in sorted(layers.items()):
        others = [names for (other, index), names in layers.items() if other == stem and index != layer]
        # A layer with tensors that no other has is one of another kind, such as a dense one before those of experts.
        if len(others) > 1 and own <= set.union(*others):
            missing += [f"{stem}.{layer}.{name}" for name in sorted(set.intersection(*others) - own)]
    for stem in sorted({stem for stem, _ in layers}):
        count = max(layout.layers or 0, 1 + max(layer for other, layer in layers if other == stem))
        missing += [f"{stem}.{layer}" for layer in range(count) if (stem, layer) not in layers]
    return [f"{source.path}: there is no {name}" for name in missing]


def _missing_files(path: Path) -> list[str]:
    problems = [] if (path / "config.json").is_file() else [f"{path}: there is no config.json"]
    if not any((path / name).is_file() for name in TOKENIZERS):
        problems.append(f"{path}: there is no tokenizer (tokenizer.json); copy the base's into this folder")
    return problems


def _listed(steps: list[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:5], "...", *shown[-5:]])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"

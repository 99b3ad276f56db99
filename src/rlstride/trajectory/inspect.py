"""Says what a path is: a trajectory, a run of another trainer, or a single checkpoint; and what is wrong with it."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.trajectory.compare import additions, misfits, parameters_by_dtype
from rlstride.trajectory.layout import InLayout, Layout, read_layout
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.hf import open_safetensors
from rlstride.trajectory.sources.hub import HubAddress, fetch, is_address
from rlstride.trajectory.sources.lora import WEIGHTS, adapter_config
from rlstride.trajectory.sources.recognise import Checkpoint, Kind, find_checkpoint
from rlstride.trajectory.sources.source import remark_on
from rlstride.trajectory.steps import step_folders, step_of
from rlstride.trajectory.store import Trajectory

_KINDS = {
    Kind.HF: "Hugging Face folder (safetensors)",
    Kind.ADAPTER: "PEFT LoRA adapter",
    Kind.DCP: "torch.distributed.checkpoint folder",
    Kind.FSDP: "FSDP shards, one file for each rank, as verl writes them",
    Kind.ZERO: "DeepSpeed ZeRO shards, one file for each rank",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_LAYER = re.compile(r"(.*\.(?:layers|h|blocks))\.(\d+)\.(.+)")


@dataclass
class Findings:
    """What is to be said of a path: facts, and problems, a sentence each.

    Attributes:
        source: the tensors of a single checkpoint that could be opened.
    """

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    source: InLayout | None = None


def inspect(place: str, base: str | None = None) -> Findings:
    """Looks at a path or an address on the hub, without reading weights: NaN, for one, is not looked for.

    Args:
        place: a trajectory, a folder of steps, a checkpoint, or ``hf://org/repo@revision``.
        base: the model that the checkpoints should fit; a trajectory knows its own.

    Raises:
        RequestError: the path does not exist, or nothing known is there.
    """
    path = _local(place)
    if not path.is_dir():
        raise RequestError(f"{path}: there is no such folder")
    if (path / "manifest.json").is_file():
        return _trajectory(path)
    start = None if base is None else HFFolder(_local(base))
    steps = {} if step_of(path.resolve().name) is not None else step_folders(path)
    if steps:
        return _run(steps, start)
    findings = _checkpoint(path, start)
    if findings is None:
        raise RequestError(f"{path}: neither a trajectory, nor a checkpoint or a run of a kind that can be read")
    return findings


def _local(place: str) -> Path:
    return fetch(HubAddress.parse(place)) if is_address(place) else Path(place)


def _trajectory(path: Path) -> Findings:
    trajectory = Trajectory(path)
    manifest = trajectory.manifest
    findings = Findings()
    findings.facts.append(f"trajectory, format {manifest.format_version}: {manifest.algorithm}, seed {manifest.seed}")
    findings.facts.append(f"base: {manifest.base.name}, {trajectory.base_folder}")
    findings.facts.append(f"steps: {_listed(trajectory.steps)}")
    start = _start(trajectory, findings)
    if start is None:
        return findings
    for step in trajectory.steps:
        checkpoint = trajectory.checkpoint(step)
        absent = [file for file in trajectory.files(step) if not file.is_file()]
        findings.problems += [f"{file}: in the manifest, but missing" for file in absent]
        if absent:
            continue
        found = _opened(checkpoint, start)
        findings.problems += found.problems
        findings.facts.append(f"step {step}: {'; '.join(found.facts[:2])}")
    return findings


def _start(trajectory: Trajectory, findings: Findings) -> HFFolder | None:
    """The trajectory's base, described; None where it cannot be read."""
    try:
        start = HFFolder(trajectory.base_folder)
    except RequestError as error:
        findings.problems.append(f"base: {error}")
        return None
    found = _opened(trajectory.checkpoint(0), None)
    findings.problems += found.problems + _missing_files(trajectory.base_folder)
    findings.facts += found.facts[1:]
    return start


def _run(steps: dict[int, Path], start: HFFolder | None) -> Findings:
    findings = Findings([f"run of {len(steps)} steps: {_listed(list(steps))}"])
    first: tuple[int, InLayout] | None = None  # without a base, what the other steps should be like
    for step, folder in steps.items():
        found = _checkpoint(folder, start) or Findings(problems=[f"{folder}: there is no checkpoint in it"])
        findings.facts += [f"step {step}: {'; '.join(found.facts[:2])}"] if found.facts else []
        findings.problems += found.problems
        if start is None and found.source is not None:
            findings.problems += misfits(found.source, first[1], f"step {first[0]}") if first else []
            first = first or (step, found.source)
    return findings


def _checkpoint(path: Path, start: HFFolder | None) -> Findings | None:
    try:
        checkpoint = find_checkpoint(path)
    except RequestError as error:
        return Findings(problems=[str(error)])
    if checkpoint is None:
        return None
    findings = _opened(checkpoint, start)
    if checkpoint.kind is Kind.HF and step_of(path.resolve().name) is None:
        findings.problems += _missing_files(checkpoint.path)
    return findings


def _opened(checkpoint: Checkpoint, start: HFFolder | None) -> Findings:
    findings = Findings([_KINDS[checkpoint.kind]])
    try:
        if checkpoint.kind is Kind.ADAPTER:
            findings.facts += _adapter_facts(checkpoint.path)
            if start is None:
                return findings
        stored = checkpoint.open(start)
        findings.facts[0] += f", {remark}" if (remark := remark_on(stored)) else ""
        findings.problems += stored.problems()
        if findings.problems:
            return findings
        layout = read_layout(start.path if start else _config_folder(checkpoint.path))
        source = findings.source = InLayout(stored, layout)
        if checkpoint.kind is not Kind.ADAPTER:
            findings.facts += _facts(source)
        if start is not None:
            base = InLayout(start, layout)
            findings.problems += misfits(source, base)
            findings.facts += [f"not in the base: {', '.join(extra)}"] if (extra := additions(source, base)) else []
        else:
            findings.problems += _gaps(source, layout)
    except RequestError as error:
        findings.problems.append(str(error))
    return findings


def _facts(source: InLayout) -> list[str]:
    dtypes = parameters_by_dtype(source)
    stored = ", ".join(f"{count:,} in {dtype}" for dtype, count in dtypes.items())
    facts = [f"{len(source.names())} tensors, {sum(dtypes.values()):,} parameters ({stored})"]
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


def _gaps(source: InLayout, layout: Layout) -> list[str]:
    """Tensors that a layer lacks although every other layer has them, and embeddings that are not there."""
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
    if layers and not source.holds("lm_head.weight") and layout.tied is False:
        missing.append("lm_head.weight")
    return [f"{source.path}: there is no {name}" for name in missing]


def _missing_files(path: Path) -> list[str]:
    problems = [] if (path / "config.json").is_file() else [f"{path}: there is no config.json"]
    if not any((path / name).is_file() for name in _TOKENIZERS):
        problems.append(f"{path}: there is no tokenizer (tokenizer.json); copy the base's into this folder")
    return problems


def _config_folder(path: Path) -> Path:
    """Where the config of a sharded checkpoint is: verl has a folder for it beside the shards, TRL keeps it above."""
    return next(
        (place for place in (path / "huggingface", path, path.parent) if (place / "config.json").is_file()), path
    )


def _listed(steps: list[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:5], "...", *shown[-5:]])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"

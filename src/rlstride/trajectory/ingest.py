"""Makes a trajectory of a run that was trained elsewhere: a manifest over its files, which stay where they are."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rlstride.atomic_files import digests_of
from rlstride.errors import RequestError
from rlstride.outputs import require_nothing_else
from rlstride.progress import track
from rlstride.trajectory.architecture import read_architecture
from rlstride.trajectory.compare import misfits, parameters_by_dtype
from rlstride.trajectory.description import Description, describe_step
from rlstride.trajectory.manifest import REMEMBERED, BaseRecord, Manifest, StepRecord, library_versions, read_manifest
from rlstride.trajectory.model_folder import ModelFolder, first_difference
from rlstride.trajectory.names import ModelTensors
from rlstride.trajectory.sources.hub import HubAddress, fetch, is_address, is_repository, revisions
from rlstride.trajectory.sources.recognise import find_checkpoint
from rlstride.trajectory.sources.source import remark_on
from rlstride.trajectory.steps import FoundStep, find_steps, step_of
from rlstride.trajectory.verified import note_whole


def ingest(
    sources: Sequence[str],
    base: str,
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    algorithm: str = "unknown",
    seed: int = 0,
    model_key: str | None = None,
    force: bool = False,
) -> Manifest:
    """Writes manifest.json over a foreign run. Nothing of the run is moved, copied or changed.

    What the checkpoints say of themselves (config, tokenizer, adapter's base) is compared with the base; what is to be
    known of that, and which steps are the base itself, is printed to stderr.

    A manifest that says the same already is left as it is.

    Args:
        sources: checkpoints, folders of runs, and addresses on the hub (``hf://org/repo@step_{n}``).
        base: the model that the run started from: a Hugging Face folder or an address on the hub.
        out: the trajectory's folder.
        steps: a number for each checkpoint in the order of ``sources``; None reads them from the names.
        algorithm: what trained the run, as tables shall say it.
        seed: the run's seed, likewise.
        model_key: what precedes the names of the model that was trained, where checkpoints hold several that fit.
        force: replace another run's manifest.

    Raises:
        RequestError: a checkpoint is missing, damaged, of an unreadable kind, without a number, quantised, or not from
            this base; no checkpoint differs from it; or ``out`` holds another run's manifest, or anything else.
    """
    require_nothing_else(out, ["manifest.json", ".manifest.json.partial", *REMEMBERED], "an ingested run's manifest")
    former = read_manifest(out) if (out / "manifest.json").is_file() and not force else None
    base_record, base_source = _base(base, out)
    found = _numbered([step for source in sources for step in _find(source)], steps)
    if former:  # what can be told before the steps' files are read for their digests
        said = former.algorithm, former.seed, [record.step for record in former.steps]
        if said != (algorithm, seed, sorted(found)):
            raise _another_runs(out)
    records, descriptions = list[StepRecord](), dict[int, Description]()
    unmoved = []
    for step in track(sorted(found), "ingest: steps"):
        opened = _open(step, found[step], base_source, model_key)
        records.append(opened.record(out))
        descriptions[step] = opened.description
        unmoved += [] if opened.moved else [step]
    _tell(descriptions, unmoved, found)
    manifest = Manifest(
        base=base_record,
        algorithm=algorithm,
        seed=seed,
        config_hash="",  # no study's config made this run
        steps=records,
        libraries=library_versions(),
        tokenizer=_tokenizer(descriptions, found, out),
    )
    if former:
        if former.model_copy(update={"libraries": manifest.libraries}) != manifest:
            raise _another_runs(out)
        return former
    out.mkdir(parents=True, exist_ok=True)
    manifest.write(out)
    note_whole(out, manifest)
    read_architecture(base_source.path, cache=out)
    return manifest


def _another_runs(out: Path) -> RequestError:
    file = out / "manifest.json"
    return RequestError(f"{file}: another run's manifest is here; name another --out, or replace it with --force")


def _find(source: str) -> list[FoundStep]:
    if not is_address(source):
        return find_steps(Path(source))
    found = []
    for address, number in revisions(HubAddress.parse(source)).items():
        folder = fetch(address)
        checkpoint = find_checkpoint(folder)
        if checkpoint is None:
            raise RequestError(f"{address}: there is no checkpoint in safetensors in it")
        step = step_of(address.revision or "") if number is None else number
        found.append(FoundStep(step, checkpoint, str(address)))
    return found


def _numbered(found: list[FoundStep], steps: Sequence[int] | None) -> dict[int, FoundStep]:
    if steps is not None and len(steps) != len(found):
        raise RequestError(f"--steps: {len(steps)} numbers for {len(found)} checkpoints")
    numbered: dict[int, FoundStep] = {}
    for place, entry in enumerate(found):
        step = entry.step if steps is None else steps[place]
        where = entry.place
        if step is None:
            raise RequestError(f"{where}: no step number in its name; give the numbers with --steps")
        if step < 1:
            raise RequestError(f"{where}: step {step}: steps start at 1, as step 0 is the base")
        if step in numbered:
            raise RequestError(f"{numbered[step].place} and {where}: both are step {step}")
        numbered[step] = entry
    named = [(step, entry) for step, entry in sorted(numbered.items()) if entry.step is not None]
    for (earlier, first), (later, second) in pairwise(named):
        if first.step is not None and second.step is not None and first.step > second.step:
            raise RequestError(
                f"--steps: {first.place} is called step {first.step} and {second.place} step {second.step}, but the "
                f"numbers given are {earlier} and {later}: list the checkpoints in the order of the numbers (a shell "
                "sorts checkpoint-100 before checkpoint-20)"
            )
    return numbered


def _base(base: str, out: Path) -> tuple[BaseRecord, ModelFolder]:
    address = HubAddress.parse(base) if is_address(base) else None
    folder = fetch(address) if address else Path(base)
    if not (folder / "config.json").is_file():
        hint = "" if address or not is_repository(base) else f", or on the hub hf://{base}"
        raise RequestError(f"{folder}: no config.json here; the base is a Hugging Face model folder{hint}")
    model = ModelFolder(folder)
    if problems := model.problems():
        raise RequestError(f"the base: {problems[0]}{_and_more(problems)}")
    if model.tensors.extra:
        print(_left_out(f"{folder}", model.tensors.extra), file=sys.stderr)
    if model.layout.architecture is None:
        print(
            f"{folder / 'config.json'}: transformers has no such model; its layers are told by the tensors' names",
            file=sys.stderr,
        )
    record = BaseRecord(
        name=address.repository if address else folder.resolve().name,
        path=_relative(folder, out),
        sha256=digests_of(folder, model.files()),
        origin=str(address) if address else None,
    )
    return record, model


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that was found to be a step from the base."""

    step: int
    found: FoundStep
    dtype: str
    files: list[str]
    model_key: str | None
    description: Description
    moved: bool

    def record(self, out: Path) -> StepRecord:
        checkpoint = self.found.checkpoint
        return StepRecord(
            step=self.step,
            folder=_relative(checkpoint.path, out),
            kind=checkpoint.format.name,
            model_key=self.model_key,
            origin=self.found.origin,
            sha256=digests_of(checkpoint.path, self.files),
            dtype=self.dtype,
        )


def _open(step: int, found: FoundStep, base: ModelFolder, model_key: str | None) -> _Opened:
    checkpoint = found.checkpoint
    stored = checkpoint.open(base.tensors)
    if remark := remark_on(stored):
        print(f"ingest: step {step}: {remark}", file=sys.stderr)
    if problems := stored.problems():
        raise RequestError(f"step {step}: {problems[0]}{_and_more(problems)}")
    source = base.step(checkpoint, model_key)
    problems = misfits(source, base.source)
    if isinstance(source.stored, ModelTensors):
        if problems and (hint := source.stored.hint()):
            problems[0] += f" ({hint})"
        problems = problems or source.stored.untied()
    if problems:
        raise RequestError(f"step {step}: {problems[0]}{_and_more(problems)}")
    description = describe_step(checkpoint, base)
    if isinstance(source.stored, ModelTensors) and source.stored.extra:
        print(f"ingest: step {step}: {_left_out(str(source.path), source.stored.extra)}", file=sys.stderr)
    dtype = next(iter(parameters_by_dtype(source)))  # of most parameters
    moved = first_difference(source, base.source) is not None
    return _Opened(step, found, dtype, stored.files(), model_key, description, moved)


def _tell(descriptions: Mapping[int, Description], unmoved: Sequence[int], found: Mapping[int, FoundStep]) -> None:
    """Prints what is to be known of the steps.

    Raises:
        RequestError: none of them differs from the base.
    """
    for step, description in descriptions.items():
        for remark in description.remarks:
            print(f"ingest: step {step}: {remark}", file=sys.stderr)
    if len(unmoved) == len(found):
        others = ", as in all other steps" * (len(unmoved) > 1)
        raise RequestError(
            f"{found[unmoved[0]].place}: every tensor is equal to the base's{others}: nothing was trained, or --base "
            "is this run's end"
        )
    for step in unmoved:
        print(f"ingest: step {step}: every tensor is equal to the base's: nothing moved until there", file=sys.stderr)


def _tokenizer(descriptions: Mapping[int, Description], found: Mapping[int, FoundStep], out: Path) -> str | None:
    """The folder of the run's own tokenizer, as a manifest has it.

    Raises:
        RequestError: two steps have different ones.
    """
    own = {step: each for step, each in descriptions.items() if each.tokenizer}
    if not own:
        return None
    first = min(own)
    for step, description in own.items():
        if description.tokenizer_digest != own[first].tokenizer_digest:
            raise RequestError(
                f"{found[step].place}: its tokenizer is another than that of step {first}: a trajectory has one; "
                "ingest the steps with either apart"
            )
    folder = own[max(own)].tokenizer
    assert folder is not None
    print(
        f"ingest: the run has a tokenizer of its own, in {folder}: all its models, and the base, are scored with it",
        file=sys.stderr,
    )
    return _relative(folder, out)


def _left_out(place: str, extra: Sequence[str]) -> str:
    shown = extra[0] + ", ..." * (len(extra) > 1)
    return f"{place}: {len(extra)} tensors are none of the model's and are left out: {shown}"


def _and_more(problems: Sequence[str]) -> str:
    return f" (and {len(problems) - 1} more problems: rlstride inspect lists them)" if len(problems) > 1 else ""


def _relative(folder: Path, out: Path) -> str:
    return os.path.relpath(folder.resolve(), out.resolve())

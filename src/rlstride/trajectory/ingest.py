"""Makes a trajectory of a run that was trained elsewhere: a manifest over its files, which stay where they are."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.outputs import require_nothing_else
from rlstride.progress import track
from rlstride.trajectory.compare import additions, misfits, parameters_by_dtype
from rlstride.trajectory.files import sha256
from rlstride.trajectory.layout import InLayout, read_layout
from rlstride.trajectory.manifest import BaseRecord, Manifest, StepRecord, library_versions, read_manifest
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.hf import read_json
from rlstride.trajectory.sources.hub import HubAddress, fetch, is_address, revisions
from rlstride.trajectory.sources.recognise import find_checkpoint
from rlstride.trajectory.sources.source import remark_on
from rlstride.trajectory.steps import FoundStep, find_steps, step_of


def ingest(
    sources: Sequence[str],
    base: str,
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    algorithm: str = "unknown",
    seed: int = 0,
    force: bool = False,
) -> Manifest:
    """Writes manifest.json over a foreign run. Nothing else is written, moved or copied.

    A manifest that says the same already is left as it is.

    Args:
        sources: checkpoints, folders of runs, and addresses on the hub (``hf://org/repo@step_{n}``).
        base: the model that the run started from: a Hugging Face folder or an address on the hub.
        out: the trajectory's folder.
        steps: a number for each checkpoint in the order of ``sources``; None reads them from the names.
        algorithm: what trained the run, as tables shall say it.
        seed: the run's seed, likewise.
        force: replace another run's manifest.

    Raises:
        RequestError: a checkpoint is missing, damaged, of an unreadable kind, without a number, or not from this base;
            or ``out`` holds another run's manifest, or anything else.
    """
    require_nothing_else(out, ["manifest.json", ".manifest.json.partial"], "an ingested run's manifest")
    former = read_manifest(out) if (out / "manifest.json").is_file() and not force else None
    base_record, base_source = _base(base, out)
    found = _numbered([step for source in sources for step in _find(source)], steps)
    if former:  # what can be told before the steps' files are read for their digests
        said = former.algorithm, former.seed, [record.step for record in former.steps]
        if said != (algorithm, seed, sorted(found)):
            raise _another_runs(out)
    records = [_record(step, found[step], base_source, out) for step in track(sorted(found), "ingest: steps")]
    manifest = Manifest(
        base=base_record,
        algorithm=algorithm,
        seed=seed,
        config_hash="",  # no study's config made this run
        steps=records,
        libraries=library_versions(),
    )
    if former:
        if former.model_copy(update={"libraries": manifest.libraries}) != manifest:
            raise _another_runs(out)
        return former
    out.mkdir(parents=True, exist_ok=True)
    manifest.write(out)
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
    return numbered


def _base(base: str, out: Path) -> tuple[BaseRecord, HFFolder]:
    address = HubAddress.parse(base) if is_address(base) else None
    folder = fetch(address) if address else Path(base)
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder}: no config.json here; the base is a Hugging Face model folder")
    if "quantization_config" in read_json(folder / "config.json"):
        raise RequestError(
            f"{folder / 'config.json'}: this base is quantised, so its files do not hold the weights that updates are "
            "counted from; give the model in 16 or 32 bit"
        )
    source = HFFolder(folder)
    record = BaseRecord(
        name=address.repository if address else folder.resolve().name,
        path=_relative(folder, out),
        sha256=_digests(folder, source.files()),
        origin=str(address) if address else None,
    )
    return record, source


def _record(step: int, found: FoundStep, base: HFFolder, out: Path) -> StepRecord:
    layout = read_layout(base.path)
    stored = found.checkpoint.open(base)
    if remark := remark_on(stored):
        print(f"ingest: step {step}: {remark}", file=sys.stderr)
    problems = stored.problems()
    if not problems:
        source, start = InLayout(stored, layout), InLayout(base, layout)
        problems = misfits(source, start)
    if problems:
        more = f" (and {len(problems) - 1} more problems: rlstride inspect lists them)" if len(problems) > 1 else ""
        raise RequestError(f"step {step}: {problems[0]}{more}")
    extra = additions(source, start)
    if extra:
        print(f"ingest: step {step}: {len(extra)} tensors are not the base's: {extra[0]}, ...", file=sys.stderr)
    return StepRecord(
        step=step,
        folder=_relative(stored.path, out),
        kind=found.checkpoint.kind.value,
        origin=found.origin,
        sha256=_digests(stored.path, stored.files()),
        dtype=next(iter(parameters_by_dtype(source))),  # of most parameters
    )


def _digests(folder: Path, files: Sequence[str]) -> dict[str, str]:
    return {file: sha256(folder / file) for file in files}


def _relative(folder: Path, out: Path) -> str:
    return os.path.relpath(folder.resolve(), out.resolve())

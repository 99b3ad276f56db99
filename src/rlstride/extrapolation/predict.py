"""Writes the models that methods predict from windows of a trajectory."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlstride.dynamics.accuracies import read_accuracies
from rlstride.errors import RequestError
from rlstride.extrapolation.method import Method, Target
from rlstride.extrapolation.registry import method_named
from rlstride.spectra.updates import UpdateReader
from rlstride.surgery.models import base_tensors, check_replaceable, model_card, write_model
from rlstride.tracking.ledger import ledger_entry
from rlstride.trajectory.compare import dtype_of_edits
from rlstride.trajectory.files import write_text
from rlstride.trajectory.store import Trajectory

NOT_APPLICABLE = "not_applicable.json"


def write_predictions(
    trajectory: Trajectory,
    folders: Mapping[Path, tuple[str, float]],
    *,
    evaluations: Path | None,
    decoding: str,
    target_accuracy: float = 1.0,
    target_step: int | None = None,
) -> None:
    """Writes one HF folder for each (method, window). No method reads a step beyond its window.

    Where several are asked for and one's window holds too few kept steps, the others are still written, and the reason
    is printed and kept in ``not_applicable.json`` beside the folders.

    Args:
        trajectory: a finished trajectory.
        folders: method name and window, a share in (0, 1], for each folder to write.
        evaluations: validation accuracy of the kept steps, for methods that use it.
        decoding: which of the evaluations' decodings is meant.
        target_accuracy: accuracy to extrapolate to, for methods that use accuracy.
        target_step: step to extrapolate to, for the others; None is the run's last step.

    Raises:
        RequestError: an unknown method, a window, target or evaluation that does not do, or, where a single model is
            asked for, a window that holds too few kept steps.
        WorkError: a checkpoint holds NaN or infinite entries.
    """
    if not 0 <= target_accuracy <= 1:
        raise RequestError(f"--target-accuracy: an accuracy is in [0, 1], not {target_accuracy:g}")
    if target_step is not None and target_step < 1:
        raise RequestError(f"--target-step: expected a whole number from 1, not {target_step}")
    target = Target(target_accuracy, trajectory.full_last_step if target_step is None else target_step)
    jobs: dict[Path, tuple[Method, float, Trajectory]] = {}
    for out, (name, share) in folders.items():
        check_replaceable(out.resolve())
        jobs[out] = method_named(name), share, trajectory.window(share)
    reasons = {out: _why_not(method, share, window) for out, (method, share, window) in jobs.items()}
    skipped = {out: reason for out, reason in reasons.items() if reason}
    if skipped and len(jobs) == 1:
        raise RequestError(f"{trajectory.folder}: {next(iter(skipped.values()))}")
    accuracies = {out: _accuracies(*jobs[out], evaluations, decoding) for out in jobs if out not in skipped}
    for out, (method, share, window) in jobs.items():
        ledger = trajectory.folder.parent / "ledger"
        with ledger_entry(ledger, "extrapolate", method=method.name, window=share) as found:
            if out in skipped:
                found["not_applicable"] = skipped[out]
                print(f"extrapolate: {out.name}: not applicable: {skipped[out]}", file=sys.stderr)
            else:
                found |= _write(out, method, share, window, accuracies[out], target)
    _record_skipped(list(jobs), skipped)


def _write(
    out: Path, method: Method, share: float, window: Trajectory, accuracies: dict[int, float], target: Target
) -> dict[str, Any]:
    """Writes one model; returns what the method tells of it."""
    prediction = method.fit(window, accuracies).predict(target)
    reader = UpdateReader(window)
    tensors = base_tensors(reader)
    # float32 at least: what is predicted lies on no grid of a narrower dtype.
    dtypes = {
        weight.name: dtype_of_edits(reader.dtype(weight, 0), reader.dtype(weight, window.steps[-1]))
        for weight in reader.weights
    }
    for name, delta in prediction.deltas:
        tensors[name] = (tensors[name].double() + delta.double()).to(dtypes[name])
    facts = {"method": method.name, "window": share, "kept steps seen": ", ".join(map(str, window.steps))}
    card = model_card(window, facts | {"prediction": json.dumps(prediction.info)})
    write_model(out, window.base_folder, tensors, card)
    if prediction.info.get("fallbacks"):
        fallbacks = prediction.info["fallbacks"]
        note = f"{len(fallbacks)} matrices could not be fitted; their last rank-1 update stands in"
        print(f"extrapolate: {out.name}: {note}", file=sys.stderr)
    return {"steps_seen": window.steps, **prediction.info}


def _why_not(method: Method, share: float, window: Trajectory) -> str | None:
    if len(window.steps) >= method.fewest_steps:
        return None
    return (
        f"{method.name} needs {method.fewest_steps} kept steps in its window; "
        f"the window {share:g} holds {len(window.steps)}"
    )


def _accuracies(
    method: Method, share: float, window: Trajectory, evaluations: Path | None, decoding: str
) -> dict[int, float]:
    if not method.uses_accuracy:
        return {}
    if evaluations is None:
        raise RequestError(f"--evaluations: {method.name} needs the accuracy of the kept steps (rlstride evaluate)")
    return read_accuracies(evaluations, window.steps, decoding)


def _record_skipped(asked: list[Path], skipped: dict[Path, str]) -> None:
    """Keeps not_applicable.json true: a name leaves it when its model could be written."""
    for parent in {out.parent for out in asked}:
        file = parent / NOT_APPLICABLE
        entries: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for out in asked:
            if out.parent == parent:
                entries.pop(out.name, None)
        entries |= {out.name: reason for out, reason in skipped.items() if out.parent == parent}
        if entries:
            write_text(file, json.dumps(entries, indent=1, sort_keys=True) + "\n")
        else:
            file.unlink(missing_ok=True)

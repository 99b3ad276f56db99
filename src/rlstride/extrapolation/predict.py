"""Writes the models that methods predict from windows of a trajectory."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlstride.atomic_files import write_text
from rlstride.dynamics.accuracies import read_accuracies
from rlstride.edits.logits import write_logits
from rlstride.edits.model_writer import EDITED_MODEL, base_tensors, model_card, write_model, written_folder
from rlstride.errors import RequestError, WorkError
from rlstride.extrapolation.linear import scaled_updates
from rlstride.extrapolation.method import Deltas, Method, Prediction, Score, Target
from rlstride.extrapolation.registry import method_named
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_folder
from rlstride.spectra.updates import UpdateReader
from rlstride.study.plan import why_not
from rlstride.trajectory.compare import dtype_of_edits
from rlstride.trajectory.scope import listed, scope_of
from rlstride.trajectory.store import Trajectory

NOT_APPLICABLE = "not_applicable.json"
# Of tensors by name, fused matrices apart, and the factor that the logits are extrapolated by: 1 leaves them.
Scorer = Callable[[Mapping[str, Tensor], float], Score]


def write_predictions(
    trajectory: Trajectory,
    folders: Mapping[Path, tuple[str, float]],
    *,
    evaluations: Path | None,
    decoding: str,
    target_accuracy: float = 1.0,
    target_step: int | None = None,
    scorer: Callable[[], Scorer] | None = None,
    where_applicable: bool = False,
    force: bool = False,
) -> None:
    """Writes one HF folder for each (method, window). No method reads a step beyond its window.

    Where several are asked for and one is not applicable, as its window holds too few kept steps or its accuracy goes
    with no matrix's movement, the others are still written, and the reason is printed and kept in
    ``not_applicable.json`` beside the folders.

    Args:
        trajectory: a finished trajectory.
        folders: method name and window, a share in (0, 1], for each folder to write.
        evaluations: validation accuracy of the kept steps, for methods that use it.
        decoding: which of the evaluations' decodings is meant.
        target_accuracy: accuracy to extrapolate to, for methods that use accuracy.
        target_step: step to extrapolate to, for the others; None is the run's last step.
        scorer: makes what scores models on validation problems, for methods that choose how far they go; asked once,
            and only where one of them is to be written.
        where_applicable: a method that is not applicable is no error, and one that fits no matrix writes what stands in
            for its fits: for a workflow, which asks for the same of every cell.
        force: replace folders that an earlier call wrote.

    Raises:
        RequestError: an unknown method, a window, target or evaluation that does not do, a folder that exists, or,
            where a single model is asked for, a window that holds too few kept steps.
        WorkError: a method is not applicable, or a checkpoint holds NaN or infinite entries.
    """
    if not 0 <= target_accuracy <= 1:
        raise RequestError(f"--target-accuracy: an accuracy is in [0, 1], not {target_accuracy:g}")
    if target_step is not None and target_step < 1:
        raise RequestError(f"--target-step: expected a whole number from 1, not {target_step}")
    step = trajectory.full_last_step if target_step is None else target_step
    jobs: dict[Path, tuple[Method, float, Trajectory]] = {}
    for out, (name, share) in folders.items():
        require_free_folder(out, EDITED_MODEL, force=force)
        jobs[out] = method_named(name), share, trajectory.window(share)
    reasons = {out: why_not(method.name, share, len(window.steps)) for out, (method, share, window) in jobs.items()}
    skipped = {out: reason for out, reason in reasons.items() if reason}
    if skipped and len(jobs) == 1:
        raise RequestError(f"{trajectory.folder}: {next(iter(skipped.values()))}")
    accuracies = {out: _accuracies(*jobs[out], evaluations, decoding) for out in jobs if out not in skipped}
    goals = dict.fromkeys(accuracies, target_accuracy)
    for out in accuracies:
        if jobs[out][0].spec.oracle:
            goals[out] = _full_accuracy(trajectory, jobs[out][0], evaluations, decoding)
    scores = _scores([jobs[out][0] for out in accuracies], scorer)
    for out, (method, share, window) in jobs.items():
        ledger = trajectory.folder.parent / "ledger"
        with ledger_entry(ledger, "extrapolate", method=method.name, window=share) as found:
            if out not in skipped:
                score = None if scores is None else _score_of_prediction(window, scores)
                prediction = method.fit(window, accuracies[out]).predict(Target(goals[out], step, score))
                if where_applicable or prediction.info.get("fitted") != 0:
                    found |= _write(out, method, share, window, prediction)
                else:
                    skipped[out] = f"accuracy goes with the movement of no matrix in the window {share:g}"
            if out in skipped:
                found["not_applicable"] = skipped[out]
                print(f"extrapolate: {out.name}: not applicable: {skipped[out]}", file=sys.stderr)
    _record_skipped(list(jobs), skipped)
    if skipped and not where_applicable:
        listed = "; ".join(f"{out.name}: {reason}" for out, reason in skipped.items())
        raise WorkError(f"{trajectory.folder}: {len(skipped)} of {len(jobs)} models not applicable ({listed})")


def _write(out: Path, method: Method, share: float, window: Trajectory, prediction: Prediction) -> dict[str, Any]:
    """Writes one model; returns what the method tells of it."""
    card = prediction_card(method, share, window, prediction.info)
    if prediction.logit_factor is not None:
        with written_folder(out, card) as partial:
            write_logits(partial, window.folder, window.steps[-1], prediction.logit_factor, out)
    else:
        tensors = predicted_tensors(window, prediction.deltas)
        write_model(out, window.base_folder, tensors, card, window.tokenizer_folder)
    if prediction.info.get("fallbacks"):
        fallbacks = prediction.info["fallbacks"]
        note = f"{len(fallbacks)} matrices could not be fitted; the window's last update stands in"
        print(f"extrapolate: {out.name}: {note}", file=sys.stderr)
    return {"steps_seen": window.steps, **prediction.info, **prediction.costs}


def predicted_tensors(window: Trajectory, deltas: Deltas) -> dict[str, Tensor]:
    """A predicted model's tensors by name: W0 + delta; float32 at least of those that move.

    What is predicted lies on no grid of a narrower dtype.
    """
    reader = UpdateReader(window)
    tensors = base_tensors(reader)
    weights = {weight.name: weight for weight in reader.weights}
    for name, delta in deltas:
        dtype = dtype_of_edits(reader.dtype(weights[name], 0), reader.dtype(weights[name], window.steps[-1]))
        tensors[name] = (tensors[name].double() + delta.double()).to(dtype)
    return tensors


def _scope_facts(window: Trajectory) -> dict[str, object]:
    """How much of the model is in scope, and what else had moved by the window's end."""
    reader = UpdateReader(window)
    outside = [weight for weight in reader.weights if not weight.in_scope]
    moved = reader.moved(window.steps[-1], outside)
    modules = [weight.module for weight in outside if weight.name in moved]
    return {"in scope": scope_of(reader.weights), "moved outside of it": listed(modules) if modules else "nothing"}


def prediction_card(method: Method, share: float, window: Trajectory, info: Mapping[str, Any]) -> str:
    """The card of a predicted model: what it was predicted from and for, and that nobody measured how good it is."""
    last = window.steps[-1]
    facts: dict[str, object] = {
        "method": method.name,
        "window": f"{share:g} of the run: up to step {last} of {window.full_last_step}",
        "kept steps seen": ", ".join(map(str, window.steps)),
        "target": f"step {last}, the window's last",
        **_scope_facts(window),
    }
    if "target_step" in info:
        facts["target"] = f"step {info['target_step']:g}"
    if "target_accuracy" in info:
        facts["target"] = f"accuracy {info['target_accuracy']:g}"
    if "kept_steps_ahead" in info:
        facts["target"] = f"{info['kept_steps_ahead']} kept steps after the window's last"
    if method.spec.oracle:
        facts["oracle"] = "the target is the fully trained run's validation accuracy, which a shortened run has not"
    standing = "**Predicted, not measured**: its accuracy is not measured here; evaluate it before use."
    if "validation_accuracy" in info:
        chosen, tried = info["chosen"], ", ".join(info["tried"])
        facts["target"] = f"{chosen} {info[chosen]:g}, chosen on validation among {tried}"
        standing = (
            f"**Of several models this one was best on validation problems, with {info['validation_accuracy']:.3f}**, "
            "which flatters it, and its accuracy is not measured on any others: evaluate it before use."
        )
    return model_card(window, facts | {"prediction": json.dumps(info)}, window.steps, standing)


def _accuracies(
    method: Method, share: float, window: Trajectory, evaluations: Path | None, decoding: str
) -> dict[int, float]:
    if not method.spec.uses_accuracy:
        return {}
    if evaluations is None:
        raise RequestError(f"--evaluations: {method.name} needs the accuracy of the kept steps (rlstride evaluate)")
    return read_accuracies(evaluations, window.steps, decoding)


def _full_accuracy(trajectory: Trajectory, method: Method, evaluations: Path | None, decoding: str) -> float:
    """What an oracle is told: the validation accuracy of the run's last step, and nothing else beyond the window."""
    if evaluations is None:
        raise RequestError(f"--evaluations: {method.name} needs the accuracy of the run's last step")
    return read_accuracies(evaluations, [trajectory.full_last_step], decoding)[trajectory.full_last_step]


def _scores(methods: Sequence[Method], scorer: Callable[[], Scorer] | None) -> Scorer | None:
    choosing = next((method for method in methods if method.spec.uses_scores), None)
    if choosing is None:
        return None
    if scorer is None:
        raise RequestError(f"--study: {choosing.name} tries its models on validation problems; name a study")
    return scorer()


def _score_of_prediction(window: Trajectory, scorer: Scorer) -> Callable[[Prediction], Score]:
    def score(prediction: Prediction) -> Score:
        if prediction.logit_factor is None:
            return scorer(predicted_tensors(window, prediction.deltas), 1.0)
        last = scaled_updates(window, window.steps[-1], 1.0)
        return scorer(predicted_tensors(window, last), prediction.logit_factor)

    return score


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

"""What a study will make and cost, told before it runs. Cells and steps are exact; disk and time are estimates."""

import json
import re
from pathlib import Path
from typing import Any

from rlstride.study.load import Study
from rlstride.study.models import PublishedModel, TinyModel
from rlstride.study.paths import base_folder, study_paths
from rlstride.study.plan import drift_steps, edit_decodings, edited_steps, edits_of_step, kept_steps, predictions

_FP32_BYTES = 4
_TINY_VOCABULARY = 20  # characters and special tokens of the testbed's tasks

# Measured on one core with models of 0.15 M parameters; time is taken as proportional to parameters above that.
MEASURED_PARAMETERS = 150e3
ROLLOUT_SECONDS = 0.28 / 128  # an RL step of 128 completions: sampling, reward and update
PRETRAINING_SECONDS = 0.11
SCORING_SECONDS = 0.001
DRIFT_SECONDS = 0.003  # drawn once, then read by two models, as are the base's
_SECONDS_PER_PROCESS = 7  # imports, loading and writing of a job

# A published model's RL on GPUs: sampling costs 2 FLOP for each parameter and token, forward and backward 6.
FLOP_PER_PARAMETER_AND_TOKEN = 8
FLOP_PER_SECOND = 2e14  # what one GPU of the H100 class sustains over a whole step: about a fifth of its peak


def describe(study: Study) -> str:
    """Cells, kept steps, disk and expected time of a study, for a person to read."""
    return "\n".join([*_plan(study), "", "Estimates:", *_costs(study)])


def _plan(study: Study) -> list[str]:
    spec, steps = study.spec, kept_steps(study.spec.training)
    return [
        f"{spec.name}: valid; {len(study.cells)} cells and {len(study.control_cells)} control runs, "
        f"task {spec.task}, results in {study_paths(study).root}",
        "",
        *(f"  cell     {cell}" for cell in study.cells),
        *(f"  control  {cell}" for cell in study.control_cells),
        "",
        f"Each run: {spec.training.steps} steps of {completions_per_step(study)} completions; keeps {len(steps)} "
        f"checkpoints ({_listed(steps)}).",
        f"Each cell: {len(predictions(spec))} predicted models, scored at {', '.join(spec.evaluation.decodings)}, and "
        f"{edits_of_run(study)} edited ones, at {', '.join(edit_decodings(spec))}, "
        f"on {spec.evaluation.test_problems} test problems.",
        *_drift_plan(study),
        *(f"Not applicable: {text}." for text in _not_applicable(study)),
    ]


def _costs(study: Study) -> list[str]:
    lines = [f"  {model}: {_describe_model(study, model)}" for model in study.models]
    tiny = [model for model, made_from in study.models.items() if isinstance(made_from, TinyModel)]
    if tiny:
        seconds = sum(tiny_seconds(study, model) for model in tiny)
        lines.append(
            f"  tiny models together: about {_minutes(seconds)} of one core, {_minutes(seconds / 2)} with two jobs "
            "side by side (from times measured on one core: yours may be half or twice that)"
        )
    if len(tiny) < len(study.models):
        lines.append(
            f"  GPU-hours: {FLOP_PER_PARAMETER_AND_TOKEN} FLOP for each parameter and token, "
            f"{FLOP_PER_SECOND:.0e} FLOP a second, {_tokens_per_sequence(study)} tokens a sequence; RL only"
        )
    return lines


def tiny_seconds(study: Study, model: str) -> float:
    """Seconds on one core for all that a study does with one of its tiny models. A base that exists costs nothing."""
    made_from, spec = study.models[model], study.spec
    if not isinstance(made_from, TinyModel):
        raise TypeError(f"{model} is no tiny model")
    growth = max(1.0, tiny_parameters(made_from) / MEASURED_PARAMETERS)
    cells, controls = len(study.algorithms) * len(spec.seeds), len(study.controls) * len(spec.seeds)
    train = spec.training.steps * completions_per_step(study) * ROLLOUT_SECONDS
    validation = (len(kept_steps(spec.training)) + 1) * spec.evaluation.validation_problems
    validation *= spec.evaluation.decodings[spec.evaluation.headline].samples
    models, decodings = 2 + len(study.controls) + len(predictions(spec)), spec.evaluation.decodings
    samples = models * sum(decoding.samples for decoding in decodings.values())
    samples += edits_of_run(study) * sum(decodings[name].samples for name in edit_decodings(spec))
    test = spec.evaluation.test_problems * samples
    scored = (cells + controls) * validation + cells * test
    drift = (cells + controls) * _drift_models(study) * spec.drift.problems
    work = (cells + controls) * train + scored * SCORING_SECONDS
    work += drift * DRIFT_SECONDS
    exists = (base_folder(study, model) / "pretraining.json").is_file()
    if not exists:
        work += made_from.pretraining.max_steps * PRETRAINING_SECONDS
    if made_from.teacher is not None and not exists:
        size = _decoder_parameters(made_from.teacher.architecture, _TINY_VOCABULARY) / MEASURED_PARAMETERS
        work += max(1.0, size) / growth * made_from.teacher.pretraining.max_steps * PRETRAINING_SECONDS
    return growth * work + _SECONDS_PER_PROCESS * (7 * cells + 3 * controls + 1)


def tiny_parameters(model: TinyModel, vocabulary: int = _TINY_VOCABULARY) -> int:
    """Parameters of a tiny decoder, from its architecture; biases and normalisation are left out (under 1 %)."""
    return _decoder_parameters(model.architecture, vocabulary)


def disk_bytes(study: Study) -> float:
    """Of all bases and kept steps; models whose size is unknown are left out."""
    runs = (len(study.cells) + len(study.control_cells)) // len(study.models)
    sizes = [parameters(made_from) or 0.0 for made_from in study.models.values()]
    return sum(size * _FP32_BYTES * (1 + runs * len(kept_steps(study.spec.training))) for size in sizes)


def parameters(model: TinyModel | PublishedModel) -> float | None:
    """Parameters of a base; None where neither its name nor a local config.json tells."""
    return tiny_parameters(model) if isinstance(model, TinyModel) else _published_parameters(model)


def _decoder_parameters(config: dict[str, Any], vocabulary: int) -> int:
    """Embeddings, attention (q, k, v, o) and gated MLP (gate, up, down) of a decoder."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    attention = 2 * hidden * head * (heads + int(config.get("num_key_value_heads") or heads))
    layer = attention + 3 * hidden * int(config["intermediate_size"])
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + layer * int(config["num_hidden_layers"])


def _published_parameters(model: PublishedModel) -> float | None:
    """From the config.json of a local folder, else from a size in the name such as 7B; None where neither tells."""
    config = Path(model.source) / "config.json"
    if config.is_file():
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
            return _decoder_parameters(content, int(content["vocab_size"]))
        except (KeyError, TypeError, ValueError):
            return None
    size = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", model.source)
    return float(size[1]) * {"B": 1e9, "M": 1e6}[size[2]] if size else None


def _describe_model(study: Study, model: str) -> str:
    made_from, training = study.models[model], study.spec.training
    runs = (len(study.cells) + len(study.control_cells)) // len(study.models)
    size = parameters(made_from)
    if size is None:
        return "neither its name nor a local config.json tells its size, so disk and time are unknown"
    weights = size * _FP32_BYTES
    kept = weights * (1 + runs * len(kept_steps(training)))
    # A cell's predicted models until they are scored, or a run's optimiser state.
    passing = weights * max(len(predictions(study.spec)), 3)
    disk = f"{_size(kept)} of disk for its base and kept steps, {_size(passing)} in passing"
    text = f"{_count(size)} parameters; {disk}"
    if isinstance(made_from, PublishedModel):
        tokens = training.steps * completions_per_step(study) * _tokens_per_sequence(study)
        hours = FLOP_PER_PARAMETER_AND_TOKEN * size * tokens * runs / FLOP_PER_SECOND / 3600
        text += f"; about {hours:.2g} GPU-hours of RL"
    return text


def edits_of_run(study: Study) -> int:
    """The edited models of one run, at all of its edited steps."""
    return sum(len(edits_of_step(study.spec, step)) for step in edited_steps(study.spec))


def _drift_models(study: Study) -> int:
    """The models of a run whose drift is measured, the base among them."""
    steps = drift_steps(study.spec)
    return 1 + len(steps) + len(study.spec.drift.variants) if steps else 0


def _drift_plan(study: Study) -> list[str]:
    steps, drift = drift_steps(study.spec), study.spec.drift
    if not steps:
        return []
    edits = f" and {', '.join(drift.variants)}" if drift.variants else ""
    text = f"drift from the base at {_listed(steps)}{edits}, on {drift.problems} validation problems."
    return [f"Each run and control: {text}"]


def _not_applicable(study: Study) -> list[str]:
    made = {(prediction.method, prediction.window) for prediction in predictions(study.spec)}
    asked = [
        (method, window) for window in study.spec.extrapolation.windows for method in study.spec.extrapolation.methods
    ]
    found = [
        f"{method} at window {window:g}, which holds too few kept steps"
        for method, window in asked
        if (method, window) not in made
    ]
    if study.spec.drift.at and not drift_steps(study.spec):
        found.append("drift, which needs a headline decoding that draws, and a kept step in one of its shares")
    return found


def completions_per_step(study: Study) -> int:
    """Rollouts in a step of RL."""
    return study.spec.training.problems_per_step * study.spec.training.completions_per_problem


def _tokens_per_sequence(study: Study) -> int:
    return study.task.max_tokens


def _listed(steps: list[int]) -> str:
    if len(steps) <= 4:
        return f"step {', '.join(map(str, steps))}"
    return f"steps {steps[0]}, {steps[1]}, ..., {steps[-1]}"


def _count(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if number >= unit / 10:
            return f"{number / unit:.2g} {name}"
    return f"{number:,.0f}"


def _size(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 7200 else f"{max(1, round(seconds / 60))} min"

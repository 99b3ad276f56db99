"""What a study will make and cost, told before it runs. Cells and steps are exact; disk and time are estimates."""

from rlstride.budget.memory import (
    TrainingMemory,
    sequences_at_once,
    tokens_per_sequence,
    tokens_to_read,
    training_memory,
)
from rlstride.budget.sizes import adapter_parameters, decoder_parameters, model_parameters
from rlstride.config.models import PublishedModel, TinyModel
from rlstride.study.paths import base_folder, study_paths
from rlstride.study.plan import (
    asked_predictions,
    benchmark_models,
    drift_steps,
    edit_decodings,
    edited_steps,
    edits_of_step,
    kept_steps,
    planned_jumps,
    predictions,
    tried_models,
)
from rlstride.study.stride_pairs import stride_of
from rlstride.study.study import Study

_FP32_BYTES, _BF16_BYTES = 4, 2

# Measured on one core with models of 0.15 M parameters; time is taken as proportional to parameters above that.
MEASURED_PARAMETERS = 150e3
ROLLOUT_SECONDS = 0.28 / 128  # an RL step of 128 completions: sampling, reward and update
PRETRAINING_SECONDS = 0.11
SCORING_SECONDS = 0.001
DRIFT_SECONDS = 0.003  # drawn once, then read by two models, as are the base's
BENCHMARK_PROMPT = 1000  # tokens of a benchmark's prompt, worked examples inside: nothing tells before it is read
_BENCHMARK_PROBLEMS = 1000  # of a benchmark without a limit
_BENCHMARK_TOKENS = 256  # of its completions, where neither it nor its file says: lm-eval's own
_SEARCH_SECONDS = 0.15 / 128  # all candidates of a stride's search that reads one batch's rollouts
_SECONDS_PER_PROCESS = 5  # imports, loading and writing of a job

# A published model's RL on GPUs: sampling costs 2 FLOP for each parameter and token, forward and backward 6.
FLOP_PER_PARAMETER_AND_TOKEN = 8
_FLOP_PER_PASS = 2  # a stride's candidate reads a batch's rollouts, or samples as many of its own
_PASSES_OF_RL = FLOP_PER_PARAMETER_AND_TOKEN / _FLOP_PER_PASS
_CANDIDATES_PER_SEARCH = 2  # the fewest of a search that goes on, or that tries a shorter jump
FLOP_PER_SECOND = 2e14  # what one GPU of the H100 class sustains over a whole step: about a fifth of its peak

# On one core, measured with 135 M parameters in float32 (benchmarks/evaluate.py): many tokens are read at once, but
# completions are drawn token by token, and each time all weights come from memory, for a batch of 32.
_CORE_READS = 1.5e11  # FLOP a second; an update's backward pass is as fast
_CORE_DRAWS = 3e10


def core_seconds(
    study: Study,
    parameters: float,
    sequences: float,
    passes: float,
    *,
    drawn: bool = True,
    tokens: float | None = None,
    written: int | None = None,
) -> float:
    """Seconds on one core for so many sequences of a published model.

    Args:
        study: whose task says how long they are, at most.
        parameters: of the model.
        sequences: prompts with their completions.
        passes: over each of them, of 2 FLOP for each parameter and token; an RL step has 4.
        drawn: whether completions are sampled in the first pass, or read.
        tokens: of a prompt with its completion; the task's, if left out.
        written: of the completion, where it is sampled; the task's, if left out.
    """
    whole = tokens or study.task.max_tokens
    written = (study.task.drawn_tokens if written is None else written) if drawn else 0
    return sequences * _FLOP_PER_PASS * parameters * ((passes * whole - written) / _CORE_READS + written / _CORE_DRAWS)


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
        *_jumps_plan(study),
        *_strides_plan(study),
        *_benchmarks_plan(study),
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
    lines += [line for model in study.models if model not in tiny for line in _training_memory(study, model)]
    if len(tiny) < len(study.models) and study.spec.device == "cpu":
        lines.append(
            f"  core-hours: as 135 M parameters took on one core in float32, {_CORE_READS:.1e} FLOP a second to read "
            f"and to update, {_CORE_DRAWS:.0e} to draw; {tokens_per_sequence(study)} tokens a sequence, "
            f"{study.task.drawn_tokens} of them drawn: shorter ones take less, and yours may take half or twice that"
        )
    elif len(tiny) < len(study.models):
        lines.append(
            f"  GPU-hours: {FLOP_PER_PARAMETER_AND_TOKEN} FLOP for each parameter and token, "
            f"{FLOP_PER_SECOND:.0e} FLOP a second, {tokens_per_sequence(study)} tokens a sequence; RL only"
        )
    return lines


def _training_memory(study: Study, model: str) -> list[str]:
    """What the training of a published model holds in memory: a line for all algorithms that hold the same."""
    by_memory: dict[tuple[TrainingMemory, int], list[str]] = {}
    for name in {**study.algorithms, **study.controls}:
        memory = training_memory(study, model, name)
        if memory is not None:
            by_memory.setdefault((memory, sequences_at_once(study, model, name)), []).append(name)
    where = "each of its GPUs" if study.spec.device == "cuda" else "each process"
    lines = []
    for (memory, sequences), names in by_memory.items():
        parts = ", ".join(f"{part} {_size(size)}" for part, size in memory.parts().items())
        lines.append(
            f"  {model}: training by {', '.join(names)} holds about {_size(memory.total)} in {where}: {parts}; "
            f"{sequences} sequences of {tokens_per_sequence(study)} tokens at once"
        )
    return lines


def tiny_seconds(study: Study, model: str) -> float:
    """Seconds on one core for all that a study does with one of its tiny models. A base that exists costs nothing."""
    made_from, spec = study.models[model], study.spec
    if not isinstance(made_from, TinyModel):
        raise TypeError(f"{model} is no tiny model")
    growth = max(1.0, decoder_parameters(made_from.architecture) / MEASURED_PARAMETERS)
    cells, controls = len(study.algorithms) * len(spec.seeds), len(study.controls) * len(spec.seeds)
    work = _trained_completions(study) * ROLLOUT_SECONDS + len(spec.seeds) * _search_seconds(study)
    work += scored_completions(study) * SCORING_SECONDS
    work += cells * sum(completions for completions, _ in benchmark_completions(study)) * SCORING_SECONDS
    work += (cells + controls) * drift_models(study) * spec.drift.problems * DRIFT_SECONDS
    exists = (base_folder(study, model) / "pretraining.json").is_file()
    if not exists:
        work += made_from.pretraining.max_steps * PRETRAINING_SECONDS
    if made_from.teacher is not None and not exists:
        size = decoder_parameters(made_from.teacher.architecture) / MEASURED_PARAMETERS
        work += max(1.0, size) / growth * made_from.teacher.pretraining.max_steps * PRETRAINING_SECONDS
    return growth * work + _SECONDS_PER_PROCESS * (7 * cells + 3 * controls + 1)


def _trained_completions(study: Study) -> float:
    """Rollouts of all runs of one model, controls and early stops among them."""
    steps = study.spec.training.steps * _runs_of_model(study) + _steps_of_jumps(study) / len(study.models)
    return steps * completions_per_step(study)


def scored_completions(study: Study) -> int:
    """Completions that the models of all runs of one model are scored by: drawn ones, or right ones that are read."""
    evaluation, decodings = study.spec.evaluation, study.spec.evaluation.decodings
    look = evaluation.validation_problems * samples_of(study, [evaluation.headline])
    test = scored_models(study) * samples_of(study, list(decodings))
    test += edits_of_run(study) * samples_of(study, edit_decodings(study.spec))
    cells = len(study.algorithms) * len(study.spec.seeds)
    tried = evaluation.test_problems * test + tried_in_cell(study) * look
    nulls = study.spec.nulls
    asked = nulls.looks * look + len(nulls.asked) * evaluation.test_problems * samples_of(study, list(decodings))
    return _runs_of_model(study) * scored_steps(study) * look + cells * tried + asked


def samples_of(study: Study, decodings: list[str]) -> int:
    """Completions of each problem by which a model is scored at some decodings; exact scoring reads one for all."""
    if study.spec.evaluation.scorer == "exact":
        return 1 if decodings else 0
    return sum(study.spec.evaluation.decodings[name].samples for name in decodings)


def _core_hours(study: Study, parameters: float) -> str:
    """What a published model's runs take without a GPU."""
    trained, scored = _trained_completions(study), scored_completions(study)
    candidates = _CANDIDATES_PER_SEARCH * sum(_searches(study).values()) * len(study.spec.seeds)
    training = core_seconds(study, parameters, trained, _PASSES_OF_RL, tokens=tokens_to_read(study))
    training += core_seconds(study, parameters, candidates * completions_per_step(study), 1, drawn=False)
    scoring = core_seconds(study, parameters, scored, 1, drawn=study.spec.evaluation.scorer == "sampled")
    for completions, written in benchmark_completions(study):
        completions *= len(study.algorithms) * len(study.spec.seeds)
        whole = BENCHMARK_PROMPT + written
        scoring += core_seconds(study, parameters, completions, 1, tokens=whole, written=written)
    drifting = _runs_of_model(study) * drift_models(study) * study.spec.drift.problems
    scoring += core_seconds(study, parameters, drifting, 2)
    return f"; about {training / 3600:.2g} core-hours of RL, {scoring / 3600:.2g} of scoring and drift"


def _describe_model(study: Study, model: str) -> str:
    made_from = study.models[model]
    parameters = model_parameters(made_from)
    if parameters is None:
        return "neither its name nor a local config.json tells its size, so disk and time are unknown"
    text = f"{_count(parameters)} parameters; {_disk(study, parameters, _trained_parameters(study, model))}"
    if isinstance(made_from, PublishedModel) and study.spec.device == "cpu":
        text += _core_hours(study, parameters)
    elif isinstance(made_from, PublishedModel):
        steps = study.spec.training.steps * _runs_of_model(study) + _steps_of_jumps(study) / len(study.models)
        flop = FLOP_PER_PARAMETER_AND_TOKEN * steps
        flop += _FLOP_PER_PASS * _CANDIDATES_PER_SEARCH * sum(_searches(study).values()) * len(study.spec.seeds)
        tokens = completions_per_step(study) * tokens_to_read(study)
        text += f"; about {flop * parameters * tokens / FLOP_PER_SECOND / 3600:.2g} GPU-hours of RL"
    return text


def _disk(study: Study, parameters: float, trained: float | None) -> str:
    """What a model's runs keep, and what they need in passing.

    Args:
        trained: those of its parameters that a kept step holds: all, or an adapter's; None where that is not known.
    """
    weights = parameters * _FP32_BYTES
    # A cell's predicted models, whole ones, until they are scored; or a run's optimiser state.
    passing = max(weights * len(predictions(study.spec)), 3 * _FP32_BYTES * (trained or 0))
    if trained is None:
        beside = "a local config.json would tell the size of its adapters"
        return f"{_size(weights)} of disk for its base ({beside}), {_size(passing)} in passing"
    held = "kept steps" if study.spec.training.adapter is None else "kept adapters"
    size = _size(_lasting_bytes(study, parameters, trained))
    return f"{size} of disk for its base and {held}, {_size(passing)} in passing"


def disk_bytes(study: Study) -> float:
    """Of all bases and kept steps; models whose size is unknown are left out."""
    sizes = {model: model_parameters(made_from) or 0.0 for model, made_from in study.models.items()}
    return sum(_lasting_bytes(study, size, _trained_parameters(study, model) or 0) for model, size in sizes.items())


def _lasting_bytes(study: Study, parameters: float, trained: float) -> float:
    """Of a model's base, and of what all of its runs keep."""
    kept: float = _runs_of_model(study) * len(kept_steps(study.spec.training))
    kept += _steps_of_jumps(study) / len(study.models) / study.spec.training.keep_every
    held = _FP32_BYTES if study.spec.training.masters == "fp32" else _BF16_BYTES
    return _FP32_BYTES * parameters + held * trained * kept


def _trained_parameters(study: Study, model: str) -> float | None:
    """Those of a model's parameters that a kept step holds: all, or an adapter's; None where that is not known."""
    made_from, adapter = study.models[model], study.spec.training.adapter
    return model_parameters(made_from) if adapter is None else adapter_parameters(adapter, made_from)


def _runs_of_model(study: Study) -> int:
    return (len(study.cells) + len(study.control_cells)) // len(study.models)


def _searches(study: Study) -> dict[str, int]:
    """How often a run of each striding algorithm searches for a jump, at most: those that find nothing get rarer."""
    strides = {name: stride_of(algorithm) for name, algorithm in study.algorithms.items()}
    return {
        name: (study.spec.training.steps - 1) // stride.window
        for name, stride in strides.items()
        if stride is not None and stride.verify != "none"
    }


def _search_seconds(study: Study) -> float:
    """Of the searches of all striding algorithms together, one run of each."""
    seconds = 0.0
    for name, searches in _searches(study).items():
        stride = stride_of(study.algorithms[name])
        drawn = stride is not None and stride.verify == "rollouts"  # candidates write answers of their own
        each = _CANDIDATES_PER_SEARCH * SCORING_SECONDS if drawn else _SEARCH_SECONDS
        seconds += searches * completions_per_step(study) * each
    return seconds


def tried_in_cell(study: Study) -> int:
    """Models of a cell that are scored on validation problems to choose how far a prediction goes."""
    return sum(tried_models(prediction, study.spec.training) for prediction in predictions(study.spec))


def _jumps_plan(study: Study) -> list[str]:
    """One line for each way to cut the RL runs short."""
    lines = []
    for name, planned in planned_jumps(study.spec).items():
        then = "the end" if planned.jump.until is None else f"trained on to step {planned.last_step}"
        about = f"{planned.jump.method} after step {planned.window_step}, then {then}"
        lines.append(f"Beside each of {len(study.jumping_cells)} RL runs one that is cut short, {name}: {about}.")
    return lines


def _steps_of_jumps(study: Study) -> float:
    """Of all early stops together, in steps of one run."""
    steps = sum(planned.last_step for planned in planned_jumps(study.spec).values())
    return steps * len(study.jumping_cells)


def _strides_plan(study: Study) -> list[str]:
    return [f"Each run of {name}: up to {searches} searches for a jump." for name, searches in _searches(study).items()]


def scored_steps(study: Study) -> int:
    """The models of a run that are scored on validation problems: its kept steps and the base."""
    return len(kept_steps(study.spec.training)) + 1


def scored_models(study: Study) -> int:
    """The models of a cell that are scored on test problems: base, full run, early stops, controls and
    predictions; edits apart."""
    return 2 + len(study.spec.extrapolation.jumps) + len(study.controls) + len(predictions(study.spec))


def benchmark_completions(study: Study) -> list[tuple[int, int]]:
    """Completions of all models of a run, and tokens of each, for every benchmark; a problem's choices count as one."""
    return [
        (
            len(benchmark_models(study.spec, each)) * (each.limit or _BENCHMARK_PROBLEMS) * (each.samples or 1),
            each.max_tokens or _BENCHMARK_TOKENS,
        )
        for each in study.spec.benchmarks
    ]


def _benchmarks_plan(study: Study) -> list[str]:
    """One line for each benchmark."""
    lines = []
    for each in study.spec.benchmarks:
        models = ", ".join(benchmark_models(study.spec, each))
        problems = f"the first {each.limit} problems" if each.limit else "all problems"
        drawn = f"{each.samples} samples of each, " if each.samples else ""
        lines.append(f"Each cell: {models} on {each.task} ({drawn}{problems}, decoding {each.decoding}).")
    return lines


def edits_of_run(study: Study) -> int:
    """The edited models of one run, at all of its edited steps."""
    return sum(len(edits_of_step(study.spec, step)) for step in edited_steps(study.spec))


def drift_models(study: Study) -> int:
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
    made = {(prediction.window, prediction.method) for prediction in predictions(study.spec)}
    spec = study.spec.extrapolation
    found = [
        f"{method} at window {window:g}, which holds too few kept steps"
        for window, method in asked_predictions(spec.methods, spec.windows)
        if (window, method) not in made
    ]
    if study.spec.drift.at and not drift_steps(study.spec):
        found.append("drift, which needs a headline decoding that draws, and a kept step in one of its shares")
    return found


def completions_per_step(study: Study) -> int:
    """Rollouts in a step of RL."""
    return study.spec.training.problems_per_step * study.spec.training.completions_per_problem


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

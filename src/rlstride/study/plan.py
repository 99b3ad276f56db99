"""What a study will make, known before anything runs: the kept steps of its runs, and the models predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlstride.config.benchmarks import Benchmark
from rlstride.config.jumps import Jump
from rlstride.config.methods import METHODS, MULTIPLES
from rlstride.config.study_file import StudyFile
from rlstride.config.training import Training
from rlstride.config.variants import is_variant, jump_variant, window_variant


@dataclass(frozen=True)
class PlannedPrediction:
    """A model that a method predicts from a window of a run."""

    variant: str
    method: str
    window: float
    step: int  # the window's last kept step


@dataclass(frozen=True)
class PlannedJump:
    """A jump of a study, in steps of its runs."""

    variant: str
    jump: Jump
    window_step: int  # the last kept step before it, after which the method is asked
    last_step: int  # at which the run ends


def kept_steps(training: Training) -> list[int]:
    """The steps that a run keeps, ascending: every ``keep_every``-th and the last; the base (0) is not among them."""
    return sorted({*range(training.keep_every, training.steps + 1, training.keep_every), training.steps})


def window_limit(window: float, last_step: int) -> int:
    """The latest step that a window may see: the largest whole t with t <= window * (last step)."""
    # The tiny term keeps 0.3 * 10 (2.9999...) from losing step 3.
    return int(window * last_step + 1e-9)


def window_steps(training: Training, window: float) -> list[int]:
    """The kept steps t with t <= window * (last step)."""
    return [step for step in kept_steps(training) if step <= window_limit(window, training.steps)]


def tried_targets(step: int, last: float) -> list[float]:
    """The target steps among which a method chooses, ascending: its own step, and the multiples of ``last`` beyond."""
    return [float(step), *(multiple * last for multiple in MULTIPLES if multiple * last > step)]


def tried_models(prediction: "PlannedPrediction", training: Training) -> int:
    """How many models are scored on validation problems to make a prediction; 0 where nothing is chosen so."""
    method = METHODS[prediction.method]
    if method.reach_through is None:
        return len(method.factors)
    return len(tried_targets(window_steps(training, prediction.window)[method.reach_through], training.steps))


def steps_at(training: Training, shares: Sequence[float]) -> list[int]:
    """The last kept step in each share of the steps, ascending; a share before the first kept step has none."""
    found = (window_steps(training, share) for share in shares)
    return sorted({steps[-1] for steps in found if steps})


def why_not(method: str, window: float, held: int) -> str | None:
    """Why a method cannot work with the ``held`` kept steps of a window; None where it can."""
    needed = METHODS[method].fewest_steps
    if held >= needed:
        return None
    return f"{method} needs {needed} kept steps in its window; the window {window:g} holds {held}"


def step_folder(step: int) -> str:
    """The name of a kept step's folder in a trajectory that this library writes."""
    return f"step_{step:06d}"


def edited_steps(spec: StudyFile) -> list[int]:
    """The kept steps whose updates are edited, ascending."""
    return steps_at(spec.training, spec.ablation.at) if spec.ablation.variants else []


def edits_of_step(spec: StudyFile, step: int) -> list[str]:
    """The edited models that are made of a kept step."""
    steps = edited_steps(spec)
    if step not in steps:
        return []
    shorter = spec.ablation.on_the_way
    return spec.ablation.variants if step == steps[-1] or shorter is None else shorter


def edit_decodings(spec: StudyFile) -> list[str]:
    """The decodings at which edited models are scored."""
    return spec.ablation.decodings or list(spec.evaluation.decodings)


def drift_steps(spec: StudyFile) -> list[int]:
    """The kept steps whose drift from the base is measured, ascending; none where the headline decoding is greedy."""
    greedy = spec.evaluation.decodings[spec.evaluation.headline].temperature == 0
    return [] if greedy else steps_at(spec.training, spec.drift.at)


def rounding_steps(spec: StudyFile) -> list[int]:
    """The kept steps whose updates are rounded to bfloat16 and measured, ascending."""
    return steps_at(spec.training, spec.rounding.at)


def asked_predictions(methods: Sequence[str], windows: Sequence[float]) -> list[tuple[float, str]]:
    """Window and method of each model that is asked for, applicable or not; a method of the whole run once, at 1."""
    whole = [method for method in methods if METHODS[method].whole_run]
    found = [(window, method) for window in windows for method in methods if method not in whole]
    return found + [(1.0, method) for method in whole]


def predictions(spec: StudyFile) -> list[PlannedPrediction]:
    """The predicted models of each run; a method that needs more kept steps than a window has is left out."""
    found = []
    for window, method in asked_predictions(spec.extrapolation.methods, spec.extrapolation.windows):
        steps = window_steps(spec.training, window)
        if not why_not(method, window, len(steps)):
            found.append(PlannedPrediction(window_variant(window, method), method, window, steps[-1]))
    return found


def planned_jumps(spec: StudyFile) -> dict[str, PlannedJump]:
    """The jumps of a study by name. A window or an end that is no kept step is the last one before."""
    found = {}
    for name, jump in spec.extrapolation.jumps.items():
        asked, ended = (max(window_steps(spec.training, share), default=0) for share in (jump.window, jump.end))
        found[name] = PlannedJump(jump_variant(name), jump, asked, ended)
    return found


def why_not_jump(spec: StudyFile, name: str) -> str | None:
    """Why a jump of a study cannot be taken; None where it can."""
    planned = planned_jumps(spec)[name]
    reason = why_not(planned.jump.method, planned.jump.window, len(window_steps(spec.training, planned.jump.window)))
    if reason is None and planned.jump.until is not None and planned.last_step <= planned.window_step:
        return f"no step is kept between the window {planned.jump.window:g} and the end {planned.jump.until:g}"
    return reason


def benchmark_models(spec: StudyFile, benchmark: Benchmark) -> list[str]:
    """The models of a run that a benchmark is about, by variant."""
    return benchmark.models or ["base", *spec.controls, "full"]


def benchmarked_models(spec: StudyFile) -> list[str]:
    """The models of a run that any benchmark is about, each once."""
    return list(dict.fromkeys(name for each in spec.benchmarks for name in benchmark_models(spec, each)))


def benchmarked_edits(spec: StudyFile) -> list[str]:
    """Those of them that are edits of the run's last step, and are made in memory."""
    folders = _model_folders(spec)
    return [name for name in benchmarked_models(spec) if name not in folders and is_variant(name)]


def why_no_model(spec: StudyFile, name: str) -> str | None:
    """Why a benchmark cannot be about a model of this name; None where it can."""
    folders = _model_folders(spec)
    if name in folders or is_variant(name):
        return None
    return f"{name!r} is neither an edited model, such as rank_1, nor one of {', '.join(folders)}"


def _model_folders(spec: StudyFile) -> list[str]:
    """The models of a run that lie in folders: base, controls, the run itself, predicted ones and early stops."""
    predicted = [each.variant for each in predictions(spec)]
    return ["base", *spec.controls, "full", *predicted, *(each.variant for each in planned_jumps(spec).values())]

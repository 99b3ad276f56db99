"""What the stages of a study cost: memory, as copies of the weights, and seconds on one core or one GPU."""

from rlstride.budget.estimates import (
    BENCHMARK_PROMPT,
    DRIFT_SECONDS,
    FLOP_PER_PARAMETER_AND_TOKEN,
    FLOP_PER_SECOND,
    MEASURED_PARAMETERS,
    PRETRAINING_SECONDS,
    ROLLOUT_SECONDS,
    SCORING_SECONDS,
    benchmark_completions,
    completions_per_step,
    core_seconds,
    drift_models,
    edits_of_run,
    samples_of,
    scored_models,
    scored_steps,
    tried_in_cell,
)
from rlstride.budget.memory import tokens_to_read, training_memory
from rlstride.budget.sizes import model_parameters
from rlstride.config.models import TinyModel
from rlstride.study.plan import benchmarked_edits, edit_decodings, kept_steps, predictions, rounding_steps
from rlstride.study.study import Study

_UNKNOWN_PARAMETERS = 8e9  # of a model whose size neither its name nor a config tells
_SAMPLING_SHARE = 0.25  # of RL's FLOP: 2 of 8 for each parameter and token
_SPECTRA_SECONDS = 12e-9  # for each parameter and kept step; benchmarks/spectra.py
_ROUNDING_SECONDS = 1e-6  # for each parameter and measured step
_TRAINED_COPIES = {"cpu": 6, "cuda": 3}  # of fp32 weights in a host's memory: gradients, moments, reference, files
_READ_COPIES = 2
_RECOMPUTED = 1.25  # of RL's FLOP with activation checkpointing: a second forward pass, 10 for 8


class Work:
    """What jobs of one model and algorithm cost, in seconds on one core or one GPU."""

    def __init__(self, study: Study, model: str, algorithm: str | None) -> None:
        self.study, self.spec, self.model, self.algorithm_name = study, study.spec, model, algorithm
        self.made_from = study.models[model]
        self.algorithm = {**study.algorithms, **study.controls}.get(algorithm or "")
        self.size = parameters_of(study, model)
        self.growth = max(1.0, self.size / MEASURED_PARAMETERS)

    def completions(
        self,
        number: float,
        tiny_seconds: float,
        share_of_rl: float,
        tokens: float | None = None,
        written: int | None = None,
    ) -> float:
        """Seconds for so many completions.

        Args:
            number: of completions.
            tiny_seconds: that one takes with a model of the testbed.
            share_of_rl: of the FLOP of a rollout in RL, its update included.
            tokens: of a prompt with its completion; the task's, if left out.
            written: of the completion; the task's, if left out.
        """
        if isinstance(self.made_from, TinyModel):
            return number * tiny_seconds * self.growth
        length = tokens or self.study.task.max_tokens
        if self.spec.device == "cpu":
            passes = share_of_rl / _SAMPLING_SHARE
            return core_seconds(self.study, self.size, number, passes, tokens=length, written=written)
        return number * share_of_rl * FLOP_PER_PARAMETER_AND_TOKEN * self.size * length / FLOP_PER_SECOND

    def scoring(self, models: float, problems: int, decodings: list[str]) -> float:
        """Seconds to score so many models at some decodings."""
        samples = samples_of(self.study, decodings)
        if self.spec.evaluation.scorer == "exact" and self.spec.device == "cpu":
            return core_seconds(self.study, self.size, models * problems * samples, 1, drawn=False)
        return self.completions(models * problems * samples, SCORING_SECONDS, _SAMPLING_SHARE)


Cost = tuple[float, float]  # copies of the weights in a host's memory, seconds


def cost_of_pretrain(work: Work) -> Cost:
    """Pretraining a tiny base, or the cold start of a published one, or reading it."""
    made_from = work.made_from
    if not isinstance(made_from, TinyModel):
        if made_from.cold_start is None:
            return _READ_COPIES, 3600.0  # a copy, of the hub's where it was not fetched before
        solutions = made_from.cold_start.max_steps * made_from.cold_start.batch_size
        return _TRAINED_COPIES["cpu"], 3600.0 + work.completions(solutions, ROLLOUT_SECONDS, 1.0)
    steps = made_from.pretraining.max_steps + (made_from.teacher.pretraining.max_steps if made_from.teacher else 0)
    return _TRAINED_COPIES["cpu"], steps * PRETRAINING_SECONDS * work.growth


def cost_of_train(work: Work) -> Cost:
    """RL, or a control."""
    training = work.spec.training
    rollouts = training.steps * completions_per_step(work.study)
    models, factor = (work.algorithm.models_in_memory, work.algorithm.cost) if work.algorithm else (1, 1.0)
    again = _RECOMPUTED if training.activation_checkpointing else 1.0
    seconds = work.completions(factor * rollouts, ROLLOUT_SECONDS, again, tokens_to_read(work.study))
    copies: float = models * _TRAINED_COPIES[work.spec.device]
    if work.spec.device == "cuda":
        return copies, seconds
    if training.masters == "bf16":
        copies /= 2
    found = training_memory(work.study, work.model, work.algorithm_name) if work.algorithm_name else None
    return max(copies, 1 + found.total / (4 * work.size) if found else 0.0), seconds  # 1: files that are written


def cost_of_evaluate_steps(work: Work) -> Cost:
    """Scoring the kept steps on validation problems."""
    evaluation = work.spec.evaluation
    return _READ_COPIES, work.scoring(scored_steps(work.study), evaluation.validation_problems, [evaluation.headline])


def cost_of_evaluate_variants(work: Work) -> Cost:
    """Scoring base, controls, full run and predicted models on test problems."""
    evaluation = work.spec.evaluation
    return _READ_COPIES, work.scoring(scored_models(work.study), evaluation.test_problems, list(evaluation.decodings))


def cost_of_nulls(work: Work) -> Cost:
    """Scoring the base in every way on validation problems, and in the best of each kind on test problems."""
    nulls, evaluation = work.spec.nulls, work.spec.evaluation
    looks = work.scoring(nulls.looks, evaluation.validation_problems, [evaluation.headline])
    return _READ_COPIES, looks + work.scoring(len(nulls.asked), evaluation.test_problems, list(evaluation.decodings))


def cost_of_benchmarks(work: Work) -> Cost:
    """Scoring models on the study's benchmarks, and making those that are edits."""
    seconds = _SPECTRA_SECONDS * work.size * len(benchmarked_edits(work.spec))
    for number, written in benchmark_completions(work.study):
        whole = BENCHMARK_PROMPT + written
        seconds += work.completions(number, SCORING_SECONDS, _SAMPLING_SHARE, tokens=whole, written=written)
    return _READ_COPIES + 1, seconds


def cost_of_ablate(work: Work) -> Cost:
    """Making the edited models in memory, and scoring them."""
    edits = edits_of_run(work.study)
    scoring = work.scoring(edits, work.spec.evaluation.test_problems, edit_decodings(work.spec))
    return _READ_COPIES + 1, scoring + _SPECTRA_SECONDS * work.size * edits


def cost_of_extrapolate(work: Work) -> Cost:
    """Reading the window for every prediction, and scoring what is tried."""
    evaluation, made = work.spec.evaluation, predictions(work.spec)
    reading = _SPECTRA_SECONDS * work.size * len(kept_steps(work.spec.training)) * len(made)
    return _READ_COPIES, reading + work.scoring(
        tried_in_cell(work.study), evaluation.validation_problems, [evaluation.headline]
    )


def cost_of_spectra(work: Work) -> Cost:
    """Decomposing every kept update."""
    return _READ_COPIES / 2, _SPECTRA_SECONDS * work.size * len(kept_steps(work.spec.training))


def cost_of_dynamics(work: Work) -> Cost:
    """Gram matrices, fits and their nulls."""
    memory, seconds = cost_of_spectra(work)
    return memory, 3 * seconds  # each step is read for the Gram matrices, the fits and their nulls


def cost_of_rounding(work: Work) -> Cost:
    """Rounding each measured update in several ways, with the leading values of each."""
    return _READ_COPIES, _ROUNDING_SECONDS * work.size * len(rounding_steps(work.spec))


def cost_of_drift(work: Work) -> Cost:
    """Completions of every model, read by two."""
    completions = drift_models(work.study) * work.spec.drift.problems
    return _READ_COPIES + 1, work.completions(completions, DRIFT_SECONDS, 2 * _SAMPLING_SHARE)


def parameters_of(study: Study, model: str) -> float:
    """Of a model of a study; of one whose size neither its name nor a config tells, 8 B are assumed."""
    return model_parameters(study.models[model]) or _UNKNOWN_PARAMETERS

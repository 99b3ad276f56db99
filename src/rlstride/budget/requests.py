"""What a job of the pipeline asks a cluster for: memory, time, threads and GPUs, from what its model and stage cost.

Estimates err, so a request has a margin, and a job that failed asks for more at every further attempt. What a cluster
calls its partitions, and which of its GPUs is meant, is none of a study's business: that stands in a profile.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rlstride.budget.estimates import (
    DRIFT_SECONDS,
    FLOP_PER_PARAMETER_AND_TOKEN,
    FLOP_PER_SECOND,
    MEASURED_PARAMETERS,
    PRETRAINING_SECONDS,
    ROLLOUT_SECONDS,
    SCORING_SECONDS,
    completions_per_step,
    drift_models,
    edits_of_run,
    scored_models,
    scored_steps,
    tried_in_cell,
)
from rlstride.budget.sizes import model_parameters
from rlstride.config.models import TinyModel
from rlstride.study.plan import drift_steps, edit_decodings, kept_steps, planned_jumps, predictions
from rlstride.study.study import Study

_MARGIN = 4  # a cluster's cores may be half as fast, and shared
_FEWEST_MINUTES = 15
_MOST_GROWTH = 4  # of memory, over all attempts
_BLOCK_MB = 256  # requests are rounded up to
_LEAST_MB = 1800  # of a process: Python, torch and transformers take 0.4 to 0.85 GB with a tiny model
_UNKNOWN_PARAMETERS = 8e9  # of a model whose size neither its name nor a config tells
_CPU_FLOP_PER_SECOND = 3e10  # of one core, sampling and updates together
_SAMPLING_SHARE = 0.25  # of RL's FLOP: 2 of 8 for each parameter and token
_SPECTRA_SECONDS = 12e-9  # for each parameter and kept step; benchmarks/spectra.py
_TRAINED_COPIES = {"cpu": 6, "cuda": 3}  # of fp32 weights in a host's memory: gradients, moments, reference, files
_READ_COPIES = 2


@dataclass(frozen=True)
class JobRequest:
    """What one job asks for.

    Attributes:
        mem_mb: memory of the host, MB.
        runtime: minutes.
        threads: processes of one thread each.
        gpu: GPUs.
    """

    mem_mb: int
    runtime: int
    threads: int = 1
    gpu: int = 0


def job_request(study: Study, rule: str, model: str, algorithm: str | None = None, attempt: int = 1) -> JobRequest:
    """What a job of a rule asks for.

    Args:
        study: names models, steps and problems.
        rule: the name of a rule that works on one cell or one base, see ``RULES``.
        model: the name of the cell's model.
        algorithm: that of the cell's algorithm or control; None of a base.
        attempt: 1 at first; see :func:`grown`.
    """
    copies, seconds = RULES[rule](_Work(study, model, algorithm))
    processes = study.spec.processes.get(model, 1) if rule in ("train_cell", "train_jump") else 1
    on_gpu = study.spec.device == "cuda" and rule in _ON_DEVICE
    weights_mb = 4e-6 * _parameters(study, model)
    mem_mb = _BLOCK_MB * math.ceil((_LEAST_MB + copies * weights_mb) * processes / _BLOCK_MB)
    minutes = max(_FEWEST_MINUTES, math.ceil(_MARGIN * seconds / processes / 60) + 5)
    return grown(JobRequest(mem_mb, minutes, processes, processes if on_gpu else 0), attempt)


def grown(asked: JobRequest, attempt: int) -> JobRequest:
    """What a job asks for at a further attempt: as much time again, and twice the memory, four times it at most."""
    return replace(asked, mem_mb=asked.mem_mb * min(2 ** (attempt - 1), _MOST_GROWTH), runtime=asked.runtime * attempt)


class _Work:
    """What jobs of one model and algorithm cost, in seconds on one core or one GPU."""

    def __init__(self, study: Study, model: str, algorithm: str | None) -> None:
        self.study, self.spec = study, study.spec
        self.made_from = study.models[model]
        self.algorithm = {**study.algorithms, **study.controls}.get(algorithm or "")
        self.size = _parameters(study, model)
        self.growth = max(1.0, self.size / MEASURED_PARAMETERS)

    def completions(self, number: float, tiny_seconds: float, share_of_rl: float) -> float:
        """Seconds for so many completions.

        Args:
            number: of completions.
            tiny_seconds: that one takes with a model of the testbed.
            share_of_rl: of the FLOP of a rollout in RL, its update included.
        """
        if isinstance(self.made_from, TinyModel):
            return number * tiny_seconds * self.growth
        speed = FLOP_PER_SECOND if self.spec.device == "cuda" else _CPU_FLOP_PER_SECOND
        flop = share_of_rl * FLOP_PER_PARAMETER_AND_TOKEN * self.size * self.study.task.max_tokens
        return number * flop / speed

    def scoring(self, models: float, problems: int, decodings: list[str]) -> float:
        """Seconds to score so many models at some decodings."""
        samples = sum(self.spec.evaluation.decodings[name].samples for name in decodings)
        return self.completions(models * problems * samples, SCORING_SECONDS, _SAMPLING_SHARE)


_Cost = tuple[float, float]  # copies of the weights in a host's memory, seconds


def _pretrain(work: _Work) -> _Cost:
    made_from = work.made_from
    if not isinstance(made_from, TinyModel):
        return _READ_COPIES, 3600.0  # a download
    steps = made_from.pretraining.max_steps + (made_from.teacher.pretraining.max_steps if made_from.teacher else 0)
    return _TRAINED_COPIES["cpu"], steps * PRETRAINING_SECONDS * work.growth


def _train(work: _Work) -> _Cost:
    rollouts = work.spec.training.steps * completions_per_step(work.study)
    models, factor = (work.algorithm.models_in_memory, work.algorithm.cost) if work.algorithm else (1, 1.0)
    return models * _TRAINED_COPIES[work.spec.device], work.completions(factor * rollouts, ROLLOUT_SECONDS, 1.0)


def _evaluate_steps(work: _Work) -> _Cost:
    evaluation = work.spec.evaluation
    return _READ_COPIES, work.scoring(scored_steps(work.study), evaluation.validation_problems, [evaluation.headline])


def _evaluate_variants(work: _Work) -> _Cost:
    evaluation = work.spec.evaluation
    return _READ_COPIES, work.scoring(scored_models(work.study), evaluation.test_problems, list(evaluation.decodings))


def _ablate(work: _Work) -> _Cost:
    edits = edits_of_run(work.study)
    scoring = work.scoring(edits, work.spec.evaluation.test_problems, edit_decodings(work.spec))
    return _READ_COPIES + 1, scoring + _SPECTRA_SECONDS * work.size * edits


def _extrapolate(work: _Work) -> _Cost:
    evaluation, made = work.spec.evaluation, predictions(work.spec)
    reading = _SPECTRA_SECONDS * work.size * len(kept_steps(work.spec.training)) * len(made)
    return _READ_COPIES, reading + work.scoring(
        tried_in_cell(work.study), evaluation.validation_problems, [evaluation.headline]
    )


def _spectra(work: _Work) -> _Cost:
    return _READ_COPIES / 2, _SPECTRA_SECONDS * work.size * len(kept_steps(work.spec.training))


def _dynamics(work: _Work) -> _Cost:
    memory, seconds = _spectra(work)
    return memory, 3 * seconds  # each step is read for the Gram matrices, the fits and their nulls


def _drift(work: _Work) -> _Cost:
    completions = drift_models(work.study) * work.spec.drift.problems
    return _READ_COPIES + 1, work.completions(completions, DRIFT_SECONDS, 2 * _SAMPLING_SHARE)


# The rules that work on one base or one cell; all others gather, and run where Snakemake runs.
RULES: Mapping[str, Callable[[_Work], _Cost]] = {
    "pretrain_base": _pretrain,
    "train_cell": _train,
    "train_jump": _train,
    "evaluate_steps": _evaluate_steps,
    "measure_spectra": _spectra,
    "ablate_update": _ablate,
    "extrapolate_trajectory": _extrapolate,
    "evaluate_variants": _evaluate_variants,
    "measure_dynamics": _dynamics,
    "measure_drift": _drift,
}
_ON_DEVICE = RULES.keys() - {"pretrain_base", "measure_dynamics"}


def rules_of(study: Study) -> list[str]:
    """Those of ``RULES`` that a study has jobs of: no jump is sent where none is planned."""
    planned = {
        "train_jump": planned_jumps(study.spec),
        "ablate_update": study.spec.ablation.variants,
        "extrapolate_trajectory": predictions(study.spec),
        "measure_drift": drift_steps(study.spec),
    }
    return [rule for rule in RULES if planned.get(rule, True)]


def _parameters(study: Study, model: str) -> float:
    return model_parameters(study.models[model]) or _UNKNOWN_PARAMETERS

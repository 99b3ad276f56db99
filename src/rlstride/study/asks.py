"""What a study asks for, known before anything runs: which stages, tables and figures it has follows from these."""

from collections.abc import Callable

from rlstride.study.paths import source_folder
from rlstride.study.plan import drift_steps, predictions, rounding_steps
from rlstride.study.stride_pairs import stride_pairs_of
from rlstride.study.study import Study


def always(study: Study) -> bool:
    """Whatever it asks for."""
    return True


def has_fetched_models(study: Study) -> bool:
    """Whether models come from the hub or a package."""
    return any(source_folder(study, model) is not None for model in study.models)


def has_nulls(study: Study) -> bool:
    """Whether bases are asked in other ways."""
    return bool(study.spec.nulls.asked)


def has_edits(study: Study) -> bool:
    """Whether models are edited."""
    return bool(study.spec.ablation.variants)


def has_predictions(study: Study) -> bool:
    """Whether models are predicted."""
    return bool(predictions(study.spec))


def has_jumps(study: Study) -> bool:
    """Whether there are early stops."""
    return bool(study.jumping_cells)


def has_drift(study: Study) -> bool:
    """Whether drift from the base is measured."""
    return bool(drift_steps(study.spec))


def has_rounding(study: Study) -> bool:
    """Whether it is measured what rounding makes of updates."""
    return bool(rounding_steps(study.spec))


def has_benchmarks(study: Study) -> bool:
    """Whether models are scored on tasks of lm-eval too."""
    return bool(study.spec.benchmarks)


def has_edits_of(*variants: str) -> Callable[[Study], bool]:
    """Whether these models are edited."""
    return lambda study: set(variants) <= set(study.spec.ablation.variants)


def has_method(name: str) -> Callable[[Study], bool]:
    """Whether a method makes a model of every cell."""
    return lambda study: any(prediction.method == name for prediction in predictions(study.spec))


def has_stride_pairs(study: Study) -> bool:
    """Whether a striding run stands beside a plain one."""
    return bool(stride_pairs_of(study))

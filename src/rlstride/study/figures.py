"""Which figures a study's report has: those of what it asks for, known before anything runs."""

from collections.abc import Callable

from rlstride.config.variants import IN_SCOPE_FULL
from rlstride.study.plan import drift_steps, edited_steps, edits_of_step, predictions
from rlstride.study.stride_pairs import twins_of
from rlstride.study.study import Study


def figures_of(study: Study) -> list[str]:
    """The names of a study's figures, in no order. What they show and how is in rlstride.report.figures.write."""
    return [name for name, is_asked in _ASKED.items() if is_asked(study)]


def _always(study: Study) -> bool:
    return True


def _has_edits(study: Study) -> bool:
    return bool(study.spec.ablation.variants)


def _has_in_scope_full(study: Study) -> bool:
    return IN_SCOPE_FULL in study.spec.ablation.variants


def _has_ranks(study: Study) -> bool:
    return bool(_ranks(study.spec.ablation.variants))


def _has_ranks_beside_the_whole(study: Study) -> bool:
    return _has_in_scope_full(study) and len(_ranks(study.spec.ablation.variants)) > 1


def _has_rank_1_on_the_way(study: Study) -> bool:
    edits = [set(edits_of_step(study.spec, step)) for step in edited_steps(study.spec)]
    return sum({"rank_1", IN_SCOPE_FULL} <= names for names in edits) > 1


def _has_drift(study: Study) -> bool:
    return bool(drift_steps(study.spec))


def _has_predictions(study: Study) -> bool:
    return bool(predictions(study.spec))


def _has_strides(study: Study) -> bool:
    return bool(twins_of(study))


def _ranks(variants: list[str]) -> list[str]:
    return [name for name in variants if name.removeprefix("rank_").isdigit()]


_ASKED: dict[str, Callable[[Study], bool]] = {
    "accuracy_by_cell": _always,
    "accuracy_over_steps": _always,
    "formats_over_steps": _always,
    "share_by_layer": _always,
    "share_over_steps": _always,
    "linear_fits": _always,
    "angle_over_steps": _always,
    "pca_paths": _always,
    "tsne_paths": _always,
    "recovered_gain": _has_edits,
    "formats_by_variant": _has_in_scope_full,
    "accuracy_over_rank": _has_ranks,
    "gain_over_rank": _has_ranks_beside_the_whole,
    "rank_1_share_over_steps": _has_rank_1_on_the_way,
    "accuracy_over_window": _has_predictions,
    "gain_over_window": _has_predictions,
    "gain_over_cost": _has_predictions,
    "drift": _has_drift,
    "stride_over_steps": _has_strides,
    "stride_over_seconds": _has_strides,
}

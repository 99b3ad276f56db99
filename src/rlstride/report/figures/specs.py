"""Every figure of the report: the one list. A new one is an entry here and the function that it names.

It is read by Snakemake's rules, and so imports nothing that is slow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from rlstride.config.variants import IN_SCOPE_FULL, parse_ablation
from rlstride.study.asks import always, has_drift, has_edits, has_predictions, has_rounding, has_stride_pairs
from rlstride.study.plan import edited_steps, edits_of_step
from rlstride.study.study import Study


def _has_in_scope_full(study: Study) -> bool:
    return IN_SCOPE_FULL in study.spec.ablation.variants


def _has_ranks(study: Study) -> bool:
    return bool(_ranks(study.spec.ablation.variants))


def _has_ranks_beside_the_whole(study: Study) -> bool:
    return _has_in_scope_full(study) and len(_ranks(study.spec.ablation.variants)) > 1


def _has_rank_1_on_the_way(study: Study) -> bool:
    edits = [set(edits_of_step(study.spec, step)) for step in edited_steps(study.spec)]
    return sum({"rank_1", IN_SCOPE_FULL} <= names for names in edits) > 1


def _has_factors(study: Study) -> bool:
    edits = [parse_ablation(name) for name in study.spec.ablation.variants]
    return any(edit.scale != 1 and edit.rank is None and edit.scope == "all" for edit in edits)


def _ranks(variants: list[str]) -> list[str]:
    return [name for name in variants if name.removeprefix("rank_").isdigit()]


@dataclass(frozen=True)
class FigureSpec:
    """What a figure shows.

    Attributes:
        name: of its files.
        title: above it on the page.
        caption: below it.
        draw: MODULE:FUNCTION below rlstride.report.figures, from the study's tables to a drawing; None from it means
            that its data are not there.
        is_asked: whether a study has it, known before anything runs.
    """

    name: str
    title: str
    caption: str
    draw: str
    is_asked: Callable[[Study], bool] = always

    def drawing(self, tables: Any, study: Study) -> Any:
        """What is drawn; the function is loaded now."""
        return resolve_name(f"rlstride.report.figures.{self.draw}")(tables, study)


FIGURES = (
    FigureSpec(
        "gain_over_rank",
        "How many ranks the gain needs",
        "Share of what the whole in-scope update gains over the base that rank-k models keep, pooled over runs, with "
        "95 % intervals (the in-scope gain itself taken as known).",
        "dominance:draw_gain_over_rank",
        is_asked=_has_ranks_beside_the_whole,
    ),
    FigureSpec(
        "rank_1_share_over_steps",
        "Dominance as RL goes on",
        "The rank-1 model's share of what the whole in-scope update gains over the base, of kept steps, where the run "
        "gained beyond noise; 95 % intervals.",
        "dominance:draw_rank_1_share_over_steps",
        is_asked=_has_rank_1_on_the_way,
    ),
    FigureSpec(
        "accuracy_by_cell",
        "What every algorithm reaches with every model",
        "Test accuracy of the base, of the frozen control (learning rate 0) and of each trained model, mean over "
        "seeds. Intervals, and the gain of each cell over its frozen control, are in learning.csv.",
        "dominance:draw_accuracy_by_cell",
    ),
    FigureSpec(
        "accuracy_over_steps",
        "Accuracy over RL, beside the base and a run that cannot learn",
        "Accuracy of the kept steps on validation problems, with 95 % intervals over problems. Horizontal lines: test "
        "accuracy of the base, and of the frozen control (learning rate 0).",
        "dominance:draw_accuracy_over_steps",
    ),
    FigureSpec(
        "accuracy_over_rank",
        "How much of a run's accuracy the top singular directions of its update carry",
        "Test accuracy of models whose update is cut to its top k singular triplets and rescaled to its full norm, "
        "with 95 % intervals over problems. Controls at rank 1: not rescaled, and random directions of equal norm.",
        "dominance:draw_accuracy_over_rank",
        is_asked=_has_ranks,
    ),
    FigureSpec(
        "recovered_gain",
        "What edited models keep of the gain",
        "Test accuracy less the base's over the full run's less the base's, pooled over models and seeds, with 95 % "
        "intervals over runs and problems. Controls have the update's norm: random directions on both sides or on one, "
        "the i-th triplet alone, the bottom of the spectrum.",
        "dominance:draw_recovered_gain",
        is_asked=has_edits,
    ),
    FigureSpec(
        "accuracy_over_window",
        "What can be predicted from a first part of the run",
        "Test accuracy of the models extrapolated from a first part of each run, pooled over the RL runs of each model "
        "(of each algorithm, where there is one model), with 95 % intervals over runs and problems. A row for each "
        "kind of method. last: the window's last checkpoint; what lies below it is harmful. Single runs are in "
        "extrapolation.csv.",
        "extrapolation:draw_accuracy_over_window",
        is_asked=has_predictions,
    ),
    FigureSpec(
        "gain_over_window",
        "What each method keeps of the gain, by how much of the run it saw",
        "Test accuracy of the predicted models less the base's over the full run's less the base's, pooled over all RL "
        "runs, with 95 % intervals over runs and problems, beside RL that stops "
        "at the window's last step: what lies below it is harmful.",
        "extrapolation:draw_gain_over_window",
        is_asked=has_predictions,
    ),
    FigureSpec(
        "gain_over_cost",
        "What each method keeps of the gain, by what it cost",
        "The same over the wall-clock of the shortened run as a share of the full one's, with RL, the looks at "
        "validation accuracy and the fit inside. Right of 100 % it took longer than training to the end. An oracle's "
        "costs leave out the full run that it was told of.",
        "extrapolation:draw_gain_over_cost",
        is_asked=has_predictions,
    ),
    FigureSpec(
        "stride_over_steps",
        "Skipping steps: accuracy over RL steps, with strides and without",
        "Accuracy of the kept steps on validation problems, mean over seeds, with the envelope of the seeds' 95 % "
        "intervals over problems. Where the striding run first crosses the dotted line it has all that plain RL gains.",
        "strides:draw_stride_over_steps",
        is_asked=has_stride_pairs,
    ),
    FigureSpec(
        "stride_over_seconds",
        "Skipping steps: accuracy over wall-clock, with strides and without",
        "The same over the seconds of training, with the searches inside and the scoring outside; seeds at their mean "
        "time at each step.",
        "strides:draw_stride_over_seconds",
        is_asked=has_stride_pairs,
    ),
    FigureSpec(
        "share_by_layer",
        "How close to rank 1 each matrix's last update is",
        "s1/|D|F of each in-scope matrix's update at the last step, mean over seeds. The share of a Gaussian update of "
        "the same shape stands beside it in the CSV file.",
        "dominance:draw_share_by_layer",
    ),
    FigureSpec(
        "share_over_steps",
        "The top singular direction's share over RL",
        "Median over the in-scope matrices, with the middle half of them as a band. Dotted: a Gaussian update "
        "of the same shapes.",
        "dominance:draw_share_over_steps",
    ),
    FigureSpec(
        "rounding",
        "What bfloat16 files hide of an update",
        "Norm share and sparsity of the runs' updates, taken times several factors, over their size: in float32, and "
        "as bfloat16 files show the same updates. Lines: what rounding alone would show, of normal entries on the same "
        "grid (sparsity), and of the update's own s1 in their noise (share). Grey: published figures, all from "
        "bfloat16 checkpoints.",
        "rounding:draw_rounding",
        is_asked=has_rounding,
    ),
    FigureSpec(
        "accuracy_over_factor",
        "Is a part of the update better than all of it?",
        "Test accuracy of W0 + f D over the factor f, mean over seeds, with the envelope of their 95 % intervals; "
        "the base is f = 0. Rank 1 at its own norm has to beat the whole update of that norm, or it is better by being "
        "shorter alone.",
        "rounding:draw_accuracy_over_factor",
        is_asked=_has_factors,
    ),
    FigureSpec(
        "linear_fits",
        "How linear the movement is, beside what is not",
        "Over all RL runs, with 95 % intervals over runs and matrices. Left: accuracy fitted on a singular direction "
        "(PLS1); the same fit reaches the lower figures where there is nothing to find. Right: errors on steps that "
        "the fit did not see (weights: the last third of the steps; accuracy: the last half), over those of what "
        "stays as it is: above 1 the forecast is worse than none.",
        "movement:draw_linear_fits",
    ),
    FigureSpec(
        "angle_over_steps",
        "When the leading direction settles",
        "Angle of the leading left singular vector of each update to that of the last one, mean over the in-scope "
        "matrices and seeds.",
        "movement:draw_angle_over_steps",
    ),
    FigureSpec(
        "pca_paths",
        "Paths of the weights: principal components",
        "All in-scope matrices together, each run by itself; a marker at about every twelfth kept step. A random walk "
        "is as smooth in its first two components: how straight a path looks here says nothing.",
        "movement:draw_pca_paths",
    ),
    FigureSpec(
        "tsne_paths",
        "Paths of the weights: t-SNE",
        "As above, by the distances between kept steps. Lengths and gaps mean nothing in it.",
        "movement:draw_tsne_paths",
    ),
    FigureSpec(
        "formats_over_steps",
        "Which solution formats RL picks",
        "Share of the validation completions in each solution format of the pretraining mixture, mean over seeds.",
        "mechanics:draw_formats_over_steps",
    ),
    FigureSpec(
        "drift",
        "How far models are from the base in what they say",
        "KL divergence of each RL run's kept steps and edited models from the base, on their own completions of "
        "validation problems: a dot for each run, a diamond for their mean; intervals are in the CSV file.",
        "mechanics:draw_drift",
        is_asked=has_drift,
    ),
    FigureSpec(
        "formats_by_variant",
        "Which solution formats edited models use",
        "Share of the test completions in each solution format, mean over all RL runs: whether an edited model solves "
        "problems in the way that the full run does.",
        "mechanics:draw_formats_by_variant",
        is_asked=_has_in_scope_full,
    ),
)
SUFFIXES = ("png", "svg", "csv")
FIGURE_FILES = tuple(f"{figure.name}.{suffix}" for figure in FIGURES for suffix in SUFFIXES)


def figures_of(study: Study) -> list[FigureSpec]:
    """Those that a study asks for."""
    return [figure for figure in FIGURES if figure.is_asked(study)]

"""Every table of a study: the one list. A new one is an entry here and the function that it names."""

from collections.abc import Mapping
from typing import Any

from rlstride.study.asks import has_benchmarks, has_drift, has_jumps, has_rounding, has_stride_pairs
from rlstride.study.stride_pairs import stride_pairs_of
from rlstride.study.study import Cell, Study
from rlstride.tables.columns import (
    ACCURACY,
    BESIDE,
    CELLS,
    DECODING,
    DRAWN,
    EARLIER,
    KEPT,
    MEASURED,
    METHOD,
    ORACLE,
    OVER_LAST,
    PARTS,
    POOL,
    SCORED,
    SPEED_UPS,
    STEP,
    UNITS,
    VARIANT,
    interval,
)
from rlstride.tables.table import Table


def _runs(study: Study) -> list[Cell]:
    return [*study.cells, *study.control_cells]


def _jumping(study: Study) -> list[Cell]:
    return study.jumping_cells


def _paired(study: Study) -> list[Cell]:
    return [cell for pair in stride_pairs_of(study) for cell in pair.cells]


def _headline(study: Study) -> Mapping[str, Any]:
    return {"headline": study.spec.evaluation.headline}


def _predicted(study: Study) -> Mapping[str, Any]:
    asked = study.spec.extrapolation
    return {**_headline(study), "methods": asked.methods, "windows": asked.windows}


def _jumps(study: Study) -> Mapping[str, Any]:
    return {**_headline(study), "jumps": study.spec.extrapolation.model_dump(mode="json")["jumps"]}


_SCORES = ("accuracy", "nulls")
_TESTS = (*_SCORES, "ablation")

_ALL = (
    Table(
        "accuracy",
        "Accuracy of every variant of every cell on the test problems, at each decoding, with 95 % intervals from a "
        "bootstrap over problems.",
        SCORED,
        "rows:accuracy_rows",
        reads=_TESTS,
        order=("variant", "step", "decoding"),
        more_columns=MEASURED,
    ),
    Table(
        "learning",
        "What RL did to every cell: base, frozen control and trained model on the test problems at each decoding, and "
        "the gain over the frozen control, with 95 % intervals from a bootstrap over problems.",
        {
            **DECODING,
            **DRAWN,
            **interval("base", "Accuracy of the base."),
            **interval("frozen", "Accuracy of the frozen control (learning rate 0)."),
            **interval("full", "Accuracy of the trained model."),
            **interval("gain", "full less frozen on the same problems."),
            "learns": "Whether the gain's interval lies above 0.",
            "sharpest": "The decoding at which the base scores best.",
            "sharpest_base": "Accuracy of the base at that decoding: what sharpening alone gives.",
            **interval("over_sharpest", "full less that, on the same problems."),
            "null": "How the untrained base scores best: as the task asks it (sharpest_base), or in another of the "
            "study's ways (forced_format, best_prompt, few_shot).",
            "null_decoding": "The decoding at which it scores best so.",
            "null_accuracy": "Accuracy of the base asked and decoded so.",
            **interval(
                "null_keeps", "Share of full less base that this null reaches; no ends where that is not told from 0."
            ),
            "stalled": "Why the run learnt nothing: constant reward (of all rollouts of its first steps), or unmoved "
            "(the last step's weights are the base's); empty where it may have.",
        },
        "learning:learning_rows",
        reads=_SCORES,
        order=("decoding",),
        with_learning_rate=True,
    ),
    Table(
        "dominance",
        "What edited models keep of each run: relative accuracy and recovered gain, with paired intervals.",
        {**STEP, **DECODING, "variant": "The edited model.", **DRAWN, **ACCURACY, **KEPT},
        "dominance:dominance_rows",
        reads=_TESTS,
        order=("step", "decoding", "variant"),
    ),
    Table(
        "recovery",
        "What edited models keep of RL, pooled over all runs, over each algorithm and over each model, with intervals "
        "over cells and problems.",
        {
            **POOL,
            "variant": "The edited model, of the runs' last step.",
            **DECODING,
            **CELLS,
            **interval("accuracy", "Mean accuracy."),
            **KEPT,
            **interval("over_random", "Accuracy less that of rank_1_random, a random update of the same norm."),
        },
        "recovery:recovery_table",
        reads=_TESTS,
        pooled=True,
        decided_by=_headline,
    ),
    Table(
        "ranks",
        "How many ranks the gain needs at each edited step, pooled over all runs, over each algorithm and over each "
        "model, with 95 % intervals.",
        {
            **POOL,
            **DECODING,
            **CELLS,
            **STEP,
            "ranks_to": "The largest rank that was scored.",
            **interval("base", "Accuracy of the base."),
            **interval("full", "Accuracy of the run at the step."),
            **interval("gain", "full less base."),
            **interval("in_scope_gain", "Share of the gain that the whole in-scope update keeps."),
            **interval("rank_1_share", "The rank-1 model's share of the in-scope gain."),
            **interval(
                "rank_needed",
                "The smallest scored rank with nine tenths of the in-scope gain; twice ranks_to where none has.",
            ),
        },
        "ranks:ranks_table",
        reads=_TESTS,
        pooled=True,
        decided_by=_headline,
    ),
    Table(
        "extrapolation",
        "What models predicted from a first part of each run keep of its accuracy and gain, and what they "
        "save with every cost inside.",
        {
            **METHOD,
            **ORACLE,
            "step": "The window's last kept step.",
            **DECODING,
            **DRAWN,
            **ACCURACY,
            **BESIDE,
            **KEPT,
            **OVER_LAST,
            **{f"{part}_{unit}": f"{unit}: {about}." for unit in UNITS[1:] for part, about in PARTS.items()},
            **SPEED_UPS,
            "not_applicable": "Why there is no such model: the window is too short for the method.",
        },
        "extrapolation:extrapolation_rows",
        reads=("accuracy", "validation"),
        order=("window", "method", "decoding"),
        decided_by=_predicted,
    ),
    Table(
        "extrapolation-pooled",
        "What predicted models keep and save by window and method, pooled over all runs, over each algorithm and over "
        "each model, with 95 % intervals over cells and problems.",
        {
            **POOL,
            **METHOD,
            **ORACLE,
            **DECODING,
            **CELLS,
            **interval("accuracy", "Mean accuracy."),
            **KEPT,
            **OVER_LAST,
            **{column: text for name, about in SPEED_UPS.items() for column, text in interval(name, about).items()},
        },
        "extrapolation:pooled_extrapolation",
        reads=("accuracy", "validation"),
        pooled=True,
        decided_by=_predicted,
    ),
    Table(
        "jumps",
        "What early stops, with a predicted model or trained on from one, keep of the full run's accuracy and "
        "gain, and save by their own clock.",
        {
            "jump": "The jump's name in the study.",
            "method": "Whose prediction was put in.",
            "window": "Share of the steps after which it was asked.",
            "window_step": "The last kept step before it.",
            "last_step": "The step at which the run ended.",
            **DECODING,
            **DRAWN,
            **ACCURACY,
            **BESIDE,
            **KEPT,
            **OVER_LAST,
            "train_seconds": "seconds: RL up to the window.",
            "validation_seconds": "seconds: scoring kept steps, where the method is told of them.",
            "extrapolation_seconds": "seconds: reading, fitting, predicting.",
            "after_seconds": "seconds: RL from there on.",
            "window_seconds": "seconds: all of these.",
            "full_seconds": "seconds: RL to the end.",
            "saved_seconds": "seconds: full less window.",
            "window_tokens": "tokens: of the shortened run, scoring inside.",
            "full_tokens": "tokens: of the full run.",
            **SPEED_UPS,
        },
        "jumps:jump_rows",
        reads=("accuracy", "validation"),
        order=("jump", "decoding"),
        cells=_jumping,
        is_asked=has_jumps,
        decided_by=_jumps,
    ),
    Table(
        "benchmarks",
        "Scores of base, controls, full run and the models that are named on the study's benchmarks: avg@n and pass@k "
        "of each metric, and the gain over the base, with 95 % intervals.",
        {
            **VARIANT,
            **STEP,
            "task": "lm-eval's task.",
            "decoding": "task (as the task's file has it), greedy, or t and the temperature.",
            "fewshot": "Worked examples in each prompt.",
            "limit": "Problems that were asked for; 0: all.",
            "metric": "lm-eval's metric.",
            "filter": "The task's filter, by which lm-eval finds answers.",
            "measure": "avg@n: the mean over n completions; pass@k: how likely one of k is right; empty: the task's "
            "own aggregate.",
            "n": "Problems.",
            "samples": "Completions of each problem.",
            "accuracy": "The metric's value, mean over problems.",
            "low": "Lower end of its 95 % interval, from a bootstrap over problems; without samples in the study, from "
            "lm-eval's standard error.",
            "high": "Its upper end.",
            **interval("gain", "accuracy less the base's on the same problems."),
        },
        "rows:benchmark_rows",
        reads=("benchmarks",),
        order=("task", "decoding", "metric", "filter", "measure", "variant", "step"),
        is_asked=has_benchmarks,
    ),
    Table(
        "validation",
        "Accuracy of the base and of each kept step on the validation problems, which are all that methods may look "
        "at.",
        SCORED,
        "rows:validation_rows",
        reads=("validation",),
        order=("step", "decoding"),
        more_columns=MEASURED,
        with_learning_rate=True,
        cells=_runs,
    ),
    Table(
        "spectra",
        "Norms, leading shares and ranks of the updates at each kept step, by kind of matrix and by layer.",
        {
            **STEP,
            "layer": "The decoder layer, from 0.",
            "kind": "The kind of matrix, such as q_proj.",
            "modules": "In-scope matrices of this kind in the layer.",
            "rows": "Of the matrix.",
            "cols": "Of the matrix.",
            "frobenius": "|D|F of the update D = Wt - W0.",
            "share_1": "s1 / |D|F.",
            "stable_rank": "|D|F^2 / s1^2.",
            "entropy_rank": "exp of the entropy of the squared singular values as shares.",
        },
        "rows:spectra_rows",
        reads=("spectra",),
        order=("step", "layer", "kind"),
        more_columns={
            "sparsity_*": "Share of the entries that changed by at most this much.",
            "ties_1": "Matrices whose first two singular values are equal to rounding.",
        },
    ),
    Table(
        "drift",
        "How far the kept steps and edited models of every run are from their base in what they say: KL divergence in "
        "nats per completion with 95 % intervals from a bootstrap over problems, changed argmax, entropies and "
        "solution "
        "formats.",
        {
            **{name: about for name, about in SCORED.items() if name not in (*ACCURACY, "seconds")},
            **interval("kl_to_base", "KL(model || base) on the model's completions, nats per completion."),
            "kl_first": "The part of it at the first position.",
            "kl_per_token": "kl_to_base over the tokens of a completion.",
            **interval("kl_from_base", "KL(base || model) on the base's completions, nats per completion."),
            "argmax_changed": "Share of positions at which the likeliest token differs from the base's.",
            "entropy": "Of the model's next token, nats, mean over positions.",
            "entropy_base": "Of the base's.",
        },
        "rows:drift_rows",
        reads=("drift",),
        order=("variant", "step"),
        more_columns=MEASURED,
        cells=_runs,
        is_asked=has_drift,
    ),
    Table(
        "tokens",
        "Which tokens' probabilities moved from the base, at the first position of a completion and at the later ones.",
        {
            **VARIANT,
            **STEP,
            "place": "first or later positions of a completion.",
            "token_id": "The token.",
            "token": "Its text.",
            "positions": "Positions that the figures are means over.",
            "probability": "Under the model.",
            "probability_base": "Under the base.",
            "change": "Mean of model less base.",
            "absolute_change": "Mean of |model less base|.",
            "share": "Of all absolute change of the model, over places and tokens.",
        },
        "rows:token_rows",
        reads=("drift_tokens",),
        order=("variant", "step", "place", "token_id"),
        cells=_runs,
        is_asked=has_drift,
    ),
    Table(
        "rounding",
        "Every run's measured updates in float32 and as bfloat16 files show them: norm share, shares of few triplets "
        "and sparsity of the whole model, beside those of random updates and those expected of the grid alone.",
        {
            **STEP,
            "update": "run: the run's own; random, random_rank_1: nulls of each tensor's norm.",
            "factor": "That the update is taken times.",
            "dtype": "fp32: itself; bf16: base and step rounded; bf16_grid: the base lies on the grid before it moves.",
            "relative": "|D|F / |W|F of all matrices in scope, as this dtype shows the update.",
            "share_sum": "Sum of s1 over sum of |D|F, over these matrices: the published norm share.",
            "share_mean": "Mean of s1 / |D|F over them.",
            "energy_1": "Share of their |D|F^2 in the leading triplet of each.",
            "energy_2": "In 2 triplets.",
            "energy_4": "In 4.",
            "energy_8": "In 8.",
            "cosine": "Of the update as shown to the update itself.",
            "unchanged": "Share of all parameters that are equal to the base's.",
            "unchanged_1e-05": "Share of them that changed by at most 1e-5: the published sparsity.",
            "expected_relative": "relative, of normal entries of the same norm.",
            "expected_share_sum": "share_sum, of the update's own s1 in the noise that rounding makes of such entries.",
            "expected_unchanged": "unchanged, of normal entries.",
            "expected_unchanged_1e-05": "unchanged_1e-05, of normal entries.",
        },
        "rounding:rounding_rows",
        reads=("rounding",),
        order=("step", "update", "factor", "dtype"),
        is_asked=has_rounding,
    ),
    Table(
        "dynamics",
        "How linear the trajectories are, beside the same fits on noise and their errors on held-out future steps.",
        {
            "quantity": "What is measured; docs/claims.md says how.",
            "rank": "Of the singular pair; 0: the whole update.",
            "value": "Mean over the in-scope matrices.",
            "low": "Lower end of its 95 % interval, from a bootstrap over matrices.",
            "high": "Its upper end.",
            "modules": "Matrices.",
        },
        "rows:dynamics_rows",
        reads=("dynamics",),
        order=("quantity", "rank"),
    ),
    Table(
        "movement",
        "Norms, angles and flat pictures of every run's update at each kept step.",
        {
            **STEP,
            "rank": "Of the singular pair; 0: the whole update.",
            "norm": "|D(t)|F, mean over the in-scope matrices.",
            "angle_to_last_degrees": "Angle of u(t) to that of the last step, mean over matrices.",
            "angle_to_previous_degrees": "Angle of u(t) to that of the kept step before.",
            "pca_1": "First principal component of all in-scope matrices together; the base is at 0.",
            "pca_2": "The second.",
            "tsne_1": "First axis of t-SNE.",
            "tsne_2": "The second.",
        },
        "rows:movement_rows",
        reads=("dynamics",),
        order=("step", "rank"),
    ),
    Table(
        "linearity",
        "How linear the movement is, pooled over all runs, over each algorithm and over each model, beside the same "
        "figures on random walks.",
        {
            **POOL,
            "quantity": "As in dynamics.csv; _over_: a difference to, or a share of, what follows, matrix by matrix.",
            "rank": "Of the singular pair; 0: the whole update.",
            **CELLS,
            "value": "Mean over matrices and runs.",
            "low": "Lower end of its 95 % interval, over runs and matrices.",
            "high": "Its upper end.",
        },
        "linearity:linearity_table",
        reads=("dynamics",),
        pooled=True,
    ),
    Table(
        "strides",
        "What each striding run takes to its plain twin's last validation accuracy, as shares of its steps, "
        "seconds and tokens, and how their test accuracies differ at the end.",
        {
            "model": "The model's name.",
            "algorithm": "Of plain RL.",
            "seed": "Of both runs.",
            "task": "The task.",
            **DECODING,
            "learning_rate": "Of plain RL.",
            "stride_learning_rate": "Of the striding run.",
            "base": "Validation accuracy that both start from.",
            "goal": "Plain RL's at its last step, made monotone over steps.",
            "steps": "That plain RL takes to the goal.",
            "stride_steps": "That the striding run takes; infinite where it never gets there.",
            **{f"{unit}_ratio": f"{unit} to the goal, striding over plain." for unit in UNITS},
            **{f"steps_ratio_{share:g}": f"Steps to {share:g} of plain RL's gain, likewise." for share in EARLIER},
            "end": "Plain RL's last test accuracy.",
            "stride_end": "The striding run's.",
            **interval("end_difference", "stride_end less end on the same problems."),
            "jumps": "That the striding run took.",
            "jumps_taken_back": "After a later batch's scores fell beyond noise.",
            "searches": "For a jump.",
            "search_share": "The searches' share of the training's time.",
        },
        "strides:strides_table",
        reads=("validation", "manifest", "accuracy"),
        pooled=True,
        cells=_paired,
        is_asked=has_stride_pairs,
        decided_by=_headline,
    ),
    Table(
        "stride-progress",
        "Validation accuracy of every kept step of striding runs and their plain twins, with the steps, "
        "seconds and tokens of training that it took.",
        {
            "model": "The model's name.",
            "algorithm": "Of plain RL, for both runs.",
            "seed": "Of both runs.",
            "stride": "Whether it is the striding run.",
            **DECODING,
            **STEP,
            "seconds": "Of training up to the step.",
            "tokens": "Of training up to the step.",
            **ACCURACY,
            "monotone": "accuracy made monotone over steps (isotonic regression).",
        },
        "strides:progress_table",
        reads=("validation", "manifest"),
        pooled=True,
        cells=_paired,
        is_asked=has_stride_pairs,
        decided_by=_headline,
    ),
    Table(
        "training",
        "Reward, completion tokens and seconds of every RL step of every run.",
        {
            "step": "Of RL, from 1.",
            "reward": "Mean over the step's rollouts; none in supervised runs.",
            "tokens": "Of the step's completions.",
            "seconds": "Of the step, without keeping weights.",
        },
        "rows:training_rows",
        reads=("manifest",),
        order=("step",),
        cells=_runs,
    ),
    Table(
        "ledger",
        "What each job did, how long it took and how much memory it held.",
        {
            "stage": "The verb that worked.",
            "status": "done or failed.",
            "started": "When, in UTC.",
            "seconds": "From start to end.",
            "peak_rss_mib": "The most memory that the process held, MiB.",
        },
        "rows:ledger_rows",
        reads=(),  # what every other table is made from: see inputs_of
        order=("stage", "started"),
        cells=_runs,
    ),
)
TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}


def tables_of(study: Study) -> list[str]:
    """The tables that a study's pipeline makes; the others are about stages that the study leaves out."""
    return [name for name, table in TABLES.items() if table.is_asked(study)]


def inputs_of(study: Study) -> dict[str, list[str]]:
    """The files that each of a study's tables is made from; the ledger is about all jobs, so it comes after all."""
    inputs = {name: [str(file) for file in TABLES[name].inputs(study)] for name in tables_of(study)}
    return inputs | {"ledger": sorted({file for files in inputs.values() for file in files})}

"""What runs that are really cut short keep and save: beside the full run of the same model, algorithm and seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlstride.config.variants import window_variant
from rlstride.evaluation.score_tables import problems_file, read_table
from rlstride.ledger import last_done
from rlstride.stats.intervals import interval_columns
from rlstride.stats.pooling import difference, having, mean_of, pooled_interval, recovered_gain
from rlstride.study.paths import CellPaths, StudyPaths
from rlstride.study.plan import PlannedJump, planned_jumps
from rlstride.study.study import Study
from rlstride.tables.costs import UNITS, looks, speed_ups
from rlstride.tables.evidence import format_interval, last_scores
from rlstride.tables.extrapolation import MEASURES, beside, scores_by_variant
from rlstride.trajectory.manifest import read_manifest

_PARTS = ("train", "validation", "extrapolation", "after")
COLUMNS = (
    *("jump", "method", "window", "window_step", "last_step", "decoding", "n", "samples", "accuracy", "low", "high"),
    *("last", "base", "full"),
    *(column for name in MEASURES for column in interval_columns(name)),
    *(f"{part}_seconds" for part in (*_PARTS, "window", "full", "saved")),
    *(f"{part}_tokens" for part in ("window", "full")),
    *(f"{unit}_speed_up" for unit in UNITS),
)


def jump_rows(paths: CellPaths, study: Study) -> pd.DataFrame:
    """One row for each jump and decoding of a cell that was scored.

    Returns:
        jump, its name; method, window; ``window_step`` and ``last_step``, after which the method was asked and the run
        ended; decoding, n, samples; ``accuracy`` on test problems with its 95 % interval; ``last``, ``base`` and
        ``full``, ``relative``, ``gain`` and ``over_last`` as in extrapolation.csv, but ``last`` is the full run at the
        step at which this one ended (of the method ``last`` at such a window); what it cost and saved
        (:func:`jump_costs`), and the full run's cost over its own.
    """
    table = read_table(paths.accuracy)
    if table.empty:
        return pd.DataFrame()
    scores, rows = scores_by_variant(problems_file(paths.accuracy)), list[dict[str, Any]]()
    for name, planned in planned_jumps(study.spec).items():
        jump = planned.jump
        about = {"jump": name, "method": jump.method, "window": jump.window}
        about |= {"window_step": planned.window_step, "last_step": planned.last_step}
        spent = jump_costs(paths, planned, study.spec.evaluation.headline)
        for found in table[table["variant"] == planned.variant].to_dict("records"):
            known = {key: found[key] for key in ("decoding", "n", "samples", "accuracy", "low", "high")}
            others = beside(scores, jump.end, planned.variant, known["decoding"])
            rows.append(about | known | others | spent | speed_ups(spent))
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).replace([np.inf, -np.inf], np.nan)


def jump_costs(paths: CellPaths, planned: PlannedJump, decoding: str) -> dict[str, float]:
    """What a run that was cut short took, by its own clock, and what the full run took by its.

    Args:
        paths: the cell's.
        planned: the jump.
        decoding: the headline one, at which its method was told accuracies.

    Returns:
        ``window_steps`` and ``full_steps``; seconds of ``train`` (RL up to the window), ``validation`` (of the kept
        steps, where the method is told of them), ``extrapolation`` (reading, fitting, predicting), ``after`` (RL from
        there on), of all of these (``window``), of the ``full`` run's RL, and ``saved``, the difference;
        ``window_tokens``, with those of validation inside, and ``full_tokens``. Keeping weights and starting a process
        are in none of them. Empty where one of the runs is not there.
    """
    cut = paths.jump(planned.variant)
    told = last_done(cut.ledger, "train")
    if not paths.manifest.is_file() or not cut.manifest.is_file() or told is None:
        return {}
    full, own = read_manifest(paths.trajectory).training, read_manifest(cut.trajectory).training
    spent = {
        "train": float(told["training_seconds"]),
        "validation": float(told["validation_seconds"]),
        "extrapolation": float(told["extrapolation_seconds"]),
        "after": sum(record.seconds for record in own if record.step > planned.window_step),
    }
    spent |= {"window": sum(spent.values()), "full": sum(record.seconds for record in full)}
    costs = {f"{part}_seconds": seconds for part, seconds in spent.items()}
    costs["saved_seconds"] = spent["full"] - spent["window"]
    costs |= {"window_steps": float(planned.last_step), "full_steps": float(len(full))}
    seen = looks(paths, planned.jump.method, planned.window_step, decoding)
    if seen is not None:  # the same steps, scored in the same way, in a job of their own
        validation = float(seen["tokens"].sum()) if len(seen) else 0.0
        costs["window_tokens"] = validation + sum(record.tokens for record in own)
        costs["full_tokens"] = float(sum(record.tokens for record in full))
    return costs


def jump_findings(results_dir: Path, study: Study, table: pd.DataFrame) -> list[str]:
    """A sentence on each jump of a study, pooled over its runs.

    Args:
        results_dir: results/{study}.
        table: jumps.csv.
    """
    paths = StudyPaths(results_dir)
    scores = {cell: last_scores(paths.cell(cell), study) for cell in study.jumping_cells}
    found = []
    for name, planned in planned_jumps(study.spec).items():
        cells = having(scores, planned.variant, "base", "full")
        rows = table[(table["jump"] == name) & (table["decoding"] == study.spec.evaluation.headline)]
        if not cells or rows.empty:
            found.append(f"{name} was not run.")
            continue
        then = "ends there" if planned.jump.until is None else f"trains on to step {planned.last_step}"
        last = window_variant(planned.jump.end, "last")
        more = pooled_interval(having(cells, last), difference(planned.variant, last))
        over = f" (less the full run's at that step: {format_interval(more)})" if np.isfinite(more.value) else ""
        share = 1 / rows["seconds_speed_up"].astype(float)
        cost = f"{share.mean():.2f} of the full run's seconds" if share.notna().any() else "seconds that are not known"
        runs = "1 run" if len(cells) == 1 else f"{len(cells)} runs"
        accuracy, gain = (
            format_interval(pooled_interval(cells, statistic))
            for statistic in (mean_of(planned.variant), recovered_gain(planned.variant))
        )
        found.append(
            f"{name}: a run that puts in what {planned.jump.method} predicts after step {planned.window_step} of "
            f"{study.spec.training.steps}, and {then}, has an accuracy of {accuracy}{over}, "
            f"and {gain} of the full run's gain, for {cost} with every cost inside ({runs})."
        )
    return found

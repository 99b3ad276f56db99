"""What early stops keep and save: beside the full run of the same model, algorithm and seed."""

from typing import Any

import pandas as pd

from rlstride.ledger import last_done
from rlstride.study.plan import PlannedJump, planned_jumps
from rlstride.tables.costs import looks, speed_ups
from rlstride.tables.extrapolation import beside, floor_of
from rlstride.tables.results import CellResults, finite
from rlstride.tables.specs import TABLES

_PARTS = ("train", "validation", "extrapolation", "after")


def jump_rows(results: CellResults) -> pd.DataFrame:
    """One row for each jump and decoding of a cell that was scored.

    Returns:
        jump, its name; method, window; ``window_step`` and ``last_step``, after which the method was asked and the run
        ended; decoding, n, samples; ``accuracy`` on test problems with its 95 % interval; ``last``, ``base`` and
        ``full``, ``relative``, ``gain`` and ``over_last`` as in extrapolation.csv, but ``last`` is the full run at the
        step at which this one ended (of the method ``last`` at such a window); what it cost and saved
        (:func:`jump_costs`), and the full run's cost over its own.
    """
    table, study, rows = results.accuracy, results.study, list[dict[str, Any]]()
    if table.empty or study is None:  # without a study nothing tells its early stops
        return pd.DataFrame()
    for name, planned in planned_jumps(study.spec).items():
        jump = planned.jump
        about = {"jump": name, "method": jump.method, "window": jump.window}
        about |= {"window_step": planned.window_step, "last_step": planned.last_step}
        spent = jump_costs(results, planned, study.spec.evaluation.headline)
        for found in table[table["variant"] == planned.variant].to_dict("records"):
            known = {key: found[key] for key in ("decoding", "n", "samples", "accuracy", "low", "high")}
            others = beside(results.last_scores(known["decoding"]), floor_of(jump.end, jump.method), planned.variant)
            rows.append(about | known | others | spent | speed_ups(spent))
    return finite(pd.DataFrame(rows).reindex(columns=list(TABLES["jumps"].columns)))


def jump_costs(results: CellResults, planned: PlannedJump, decoding: str) -> dict[str, float]:
    """What an early stop took, by its own clock, and what the full run took by its.

    Args:
        results: the cell's.
        planned: the jump.
        decoding: the headline one, at which its method was told accuracies.

    Returns:
        ``window_steps`` and ``full_steps``; seconds of ``train`` (RL up to the window), ``validation`` (of the kept
        steps, where the method is told of them), ``extrapolation`` (reading, fitting, predicting), ``after`` (RL from
        there on), of all of these (``window``), of the ``full`` run's RL, and ``saved``, the difference;
        ``window_tokens``, with those of validation inside, and ``full_tokens``. Keeping weights and starting a process
        are in none of them. Empty where one of the runs is not there.
    """
    cut = results.early_stop(planned.variant)
    told = last_done(cut.ledger, "train")
    if results.manifest is None or cut.manifest is None or told is None:
        return {}
    full, own = results.manifest.training, cut.manifest.training
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
    seen = looks(results, planned.jump.method, planned.window_step, decoding)
    if seen is not None:  # the same steps, scored in the same way, in a job of their own
        validation = float(seen["tokens"].sum()) if len(seen) else 0.0
        costs["window_tokens"] = validation + sum(record.tokens for record in own)
        costs["full_tokens"] = float(sum(record.tokens for record in full))
    return costs

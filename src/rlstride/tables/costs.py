"""What a shortened run costs beside the full one, with everything inside: RL, the looks at its steps, the fit.

Seconds are of work alone, on both sides: RL steps as the manifest has them, scored models as their tables have them,
and a method's fitting, choosing and writing as its ledger entry has them. Starting a process is in none of them.
"""

import pandas as pd

from rlstride.config.methods import METHODS
from rlstride.ledger import last_done
from rlstride.study.plan import window_limit
from rlstride.tables.columns import UNITS
from rlstride.tables.results import CellResults

PARTS = ("train", "validation", "fit")


def window_costs(results: CellResults, window: float, method: str, decoding: str) -> dict[str, float]:
    """What a method's model of a window took, and what the full run took.

    Args:
        results: the cell's.
        window: the share of the steps that the method saw.
        method: its name.
        decoding: at which it was given the accuracy of the window's kept steps, where it uses that.

    Returns:
        ``full_steps`` and ``window_steps``; of seconds and of sampled tokens: ``train`` (RL up to the window's last
        kept step), ``validation`` (of the accuracies that the method uses, else 0), ``fit`` (its last ledger entry:
        fitting, trying candidates, writing), ``window`` (their sum), ``full`` (RL to the end). What is not known is
        missing: all but the steps of a run that was trained elsewhere, and a sum of which one part is. Empty where
        there is no trajectory, or no kept step in the window.
    """
    manifest = results.manifest
    if manifest is None:
        return {}
    full = max((record.step for record in manifest.steps), default=0)
    last = max((record.step for record in manifest.steps if record.step <= window_limit(window, full)), default=0)
    if not last:
        return {}
    costs = {"full_steps": float(full), "window_steps": float(last)}
    training = pd.DataFrame([record.model_dump() for record in manifest.training])
    seen = looks(results, method, last, decoding)
    fit = last_done(results.ledger, "extrapolate", method=method, window=window, not_applicable=None)
    for unit in ("seconds", "tokens"):
        if len(training):
            costs[f"train_{unit}"] = float(training.loc[training["step"] <= last, unit].sum())
            costs[f"full_{unit}"] = float(training[unit].sum())
        if seen is not None:
            costs[f"validation_{unit}"] = float(seen[unit].sum()) if len(seen) else 0.0
        if fit is not None:
            costs[f"fit_{unit}"] = float(fit.get(unit, 0))
        parts = [f"{part}_{unit}" for part in PARTS]
        if all(part in costs for part in parts):
            costs[f"window_{unit}"] = sum(costs[part] for part in parts)
    return costs


def speed_ups(costs: dict[str, float]) -> dict[str, float]:
    """Full run over shortened run, in each unit that is known of both: ``steps_speed_up``, ..."""
    return {
        f"{unit}_speed_up": costs[f"full_{unit}"] / costs[f"window_{unit}"]
        for unit in UNITS
        if f"full_{unit}" in costs and costs.get(f"window_{unit}", 0) > 0
    }


def looks(results: CellResults, method: str, last: int, decoding: str) -> pd.DataFrame | None:
    """The scored kept steps, up to ``last``, that a method is told the accuracy of; None where they were not scored."""
    if not METHODS[method].uses_accuracy:
        return pd.DataFrame()
    table = results.validation
    if table.empty:
        return None
    return table[(table["decoding"] == decoding) & (table["step"] > 0) & (table["step"] <= last)]

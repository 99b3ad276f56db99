"""What edited models keep of a run: relative accuracy and recovered gain, beside base, full run and the same step's."""

import pandas as pd

from rlstride.stats.intervals import ratio_interval, recovered_gain_interval
from rlstride.tables.columns import KEPT
from rlstride.tables.results import CellResults, finite


def dominance_rows(results: CellResults) -> pd.DataFrame:
    """One row for each edited model, step and decoding of a cell.

    Returns:
        step, decoding, variant, n, samples; ``accuracy`` with its 95 % interval; ``relative``, its share of the full
        run's accuracy at that step, and ``gain``, the share of what that gained over the base, each with a paired
        bootstrap interval over problems (without ends where the full run's gain is not told from 0). Empty where no
        edited model was scored.
    """
    edits, scores = results.edits, results.scores
    if edits.empty or results.accuracy.empty:
        return pd.DataFrame()
    rows = []
    for edit in edits[edits["variant"] != "full"].to_dict("records"):
        key = (edit["variant"], edit["step"], edit["decoding"])
        base, full = scores.get(("base", 0, key[2])), scores.get(("full", key[1], key[2]))
        row = {name: edit[name] for name in ("step", "decoding", "variant", "n", "samples", "accuracy", "low", "high")}
        if base is not None and full is not None:
            row |= ratio_interval(scores[key], full).columns("relative")
            row |= recovered_gain_interval(scores[key], base, full).columns("gain")
        rows.append(row)
    frame = finite(pd.DataFrame(rows))
    return frame.reindex(columns=list(dict.fromkeys([*frame, *KEPT])))

"""What edited models, and the nulls, keep of a run: relative accuracy and recovered gain, beside the same step's."""

import pandas as pd

from rlstride.config.nulls import NULL_VARIANTS
from rlstride.stats.intervals import ratio_interval, recovered_gain_interval
from rlstride.tables.columns import KEPT
from rlstride.tables.results import CellResults, finite


def dominance_rows(results: CellResults) -> pd.DataFrame:
    """One row for each edited model, step and decoding of a cell, and for each null at the last edited step.

    Returns:
        step, decoding, variant, n, samples; ``accuracy`` with its 95 % interval; ``relative``, its share of the full
        run's accuracy at that step, and ``gain``, the share of what that gained over the base, each with a paired
        bootstrap interval over problems (without ends where the full run's gain is not told from 0). Empty where no
        edited model was scored.
    """
    edits, scores = results.edits, results.scores
    if edits.empty or results.accuracy.empty:
        return pd.DataFrame()
    rows, last = [], edits["step"].max()
    edited = edits[edits["variant"] != "full"].to_dict("records")
    for edit in [*edited, *results.nulls.assign(step=last).to_dict("records")]:
        of_step = 0 if edit["variant"] in NULL_VARIANTS else edit["step"]
        key = (edit["variant"], of_step, edit["decoding"])
        base, full = scores.get(("base", 0, key[2])), scores.get(("full", edit["step"], key[2]))
        row = {name: edit[name] for name in ("step", "decoding", "variant", "n", "samples", "accuracy", "low", "high")}
        if base is not None and full is not None:
            row |= ratio_interval(scores[key], full).columns("relative")
            row |= recovered_gain_interval(scores[key], base, full).columns("gain")
        rows.append(row)
    frame = finite(pd.DataFrame(rows))
    return frame.reindex(columns=list(dict.fromkeys([*frame, *KEPT])))

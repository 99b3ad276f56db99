"""What RL did to a cell: base, frozen control and trained model side by side, at each decoding."""

import pandas as pd

from rlstride.stats.intervals import paired_difference_interval, recovered_gain_interval
from rlstride.tables.results import CellResults, finite

COMPARED = ("base", "frozen", "full")


def learning_rows(results: CellResults) -> pd.DataFrame:
    """One row for each decoding of a cell.

    Returns:
        decoding, n, samples; the accuracy of base, frozen and full on test problems, each with its 95 % interval
        (``base_low``, ``base_high``, ...); ``gain``, the full run's accuracy less the frozen control's on the same
        problems, with its interval; ``learns``, whether that interval lies above 0; the same of the run over the base
        at its best decoding: what the base has by itself, if it is only drawn from more narrowly; ``null``, the way of
        asking the base that scores best without training, at its best decoding, and what that keeps of the run's gain
        over the base;
        ``stalled``, why the run learnt nothing. Empty where the cell was not scored; what was not scored is missing.
    """
    if results.accuracy.empty:
        return pd.DataFrame()
    manifest, sharpest, null = results.manifest, results.sharpest_base(), results.strongest_null()
    rows = []
    for decoding, found in results.accuracy.groupby("decoding", sort=True):
        by_variant = found.set_index("variant")
        row = {"decoding": decoding, "n": found["n"].iloc[0], "samples": found["samples"].iloc[0]}
        for name in COMPARED:
            known = name in by_variant.index
            for column, suffix in (("accuracy", ""), ("low", "_low"), ("high", "_high")):
                row[name + suffix] = by_variant.loc[name, column] if known else None
        scores = results.last_scores(str(decoding))
        if {"frozen", "full"} <= set(scores):
            gain = paired_difference_interval(scores["full"], scores["frozen"])
            row |= gain.columns("gain") | {"learns": gain.low > 0}
        if null is not None and {"base", "full"} <= set(scores):
            name, at, found_there = null
            kept = recovered_gain_interval(found_there, scores["base"], scores["full"])
            row |= {"null": name, "null_decoding": at, "null_accuracy": float(found_there.mean())}
            row |= kept.columns("null_keeps")
        if sharpest is not None:
            row |= {"sharpest": sharpest[0], "sharpest_base": float(sharpest[1].mean())}
            if "full" in scores:
                row |= paired_difference_interval(scores["full"], sharpest[1]).columns("over_sharpest")
        rows.append(row | {"stalled": manifest.stalled if manifest else None})
    return finite(pd.DataFrame(rows))

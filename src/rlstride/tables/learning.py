"""What RL did to a cell: base, frozen control and trained model side by side, at each decoding."""

from pathlib import Path

import pandas as pd

from rlstride.evaluation.score_tables import problems_file
from rlstride.stats.intervals import paired_difference_interval

COMPARED = ("base", "frozen", "full")


def learning_rows(accuracy: Path) -> pd.DataFrame:
    """One row for each decoding, from a cell's accuracy.parquet and the scores by problem beside it.

    Returns:
        decoding, n, samples; the accuracy of base, frozen and full on test problems, each with its 95 % interval
        (``base_low``, ``base_high``, ...); ``gain``, the full run's accuracy less the frozen control's on the same
        problems, with its interval; ``learns``, whether that interval lies above 0. Empty where the cell was not
        scored; what was not scored is missing.
    """
    if not accuracy.is_file():
        return pd.DataFrame()
    table = pd.read_parquet(accuracy)
    scores = _scores(problems_file(accuracy))
    rows = []
    for decoding, found in table.groupby("decoding", sort=True):
        by_variant = found.set_index("variant")
        row = {"decoding": decoding, "n": found["n"].iloc[0], "samples": found["samples"].iloc[0]}
        for name in COMPARED:
            known = name in by_variant.index
            for column, suffix in (("accuracy", ""), ("low", "_low"), ("high", "_high")):
                row[name + suffix] = by_variant.loc[name, column] if known else None
        at_decoding = scores[scores["decoding"] == decoding].groupby("variant")["score"]
        if {"frozen", "full"} <= set(at_decoding.groups):
            gain = paired_difference_interval(at_decoding.get_group("full"), at_decoding.get_group("frozen"))
            row |= gain.columns("gain") | {"learns": gain.low > 0}
        rows.append(row)
    return pd.DataFrame(rows)


def _scores(problems: Path) -> pd.DataFrame:
    if not problems.is_file():
        return pd.DataFrame(columns=["variant", "decoding", "problem", "score"])
    return pd.read_parquet(problems).sort_values("problem")

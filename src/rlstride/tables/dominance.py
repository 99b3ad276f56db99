"""What edited models keep of a run: relative accuracy and recovered gain, beside base, full run and the same step's."""

from pathlib import Path

import numpy as np
import pandas as pd

from rlstride.config.study_file import StudyFile
from rlstride.evaluation.score_tables import asked_edits, problems_file, read_table, read_tests
from rlstride.stats.intervals import interval_columns, ratio_interval, recovered_gain_interval

RECOVERIES = (*interval_columns("relative"), *interval_columns("gain"))


def dominance_rows(accuracy: Path, ablation: Path, spec: StudyFile | None) -> pd.DataFrame:
    """One row for each edited model, step and decoding of a cell.

    Args:
        accuracy: accuracy.parquet, with base and full run; the scores by problem lie beside it.
        ablation: ablation.parquet, with the edited models, and the full run at those of their steps that are not its
            last; likewise.
        spec: the study; None takes every edit that was scored.

    Returns:
        step, decoding, variant, n, samples; ``accuracy`` with its 95 % interval; ``relative``, its share of the full
        run's accuracy at that step, and ``gain``, the share of what that gained over the base, each with a paired
        bootstrap interval over problems (without ends where the full run's gain is not told from 0). Empty where no
        edited model was scored.
    """
    edits = asked_edits(read_table(ablation), spec)
    if edits.empty or not accuracy.is_file():
        return pd.DataFrame()
    problems = read_tests(problems_file(accuracy), problems_file(ablation), spec).sort_values("problem")
    scores = {
        key: rows["score"].to_numpy(dtype=float)
        for key, rows in problems.groupby(["variant", "step", "decoding"], sort=False)
    }
    rows = []
    for edit in edits[edits["variant"] != "full"].to_dict("records"):
        key = (edit["variant"], edit["step"], edit["decoding"])
        base, full = scores.get(("base", 0, key[2])), scores.get(("full", key[1], key[2]))
        row = {name: edit[name] for name in ("step", "decoding", "variant", "n", "samples", "accuracy", "low", "high")}
        if base is not None and full is not None:
            row |= ratio_interval(scores[key], full).columns("relative")
            row |= recovered_gain_interval(scores[key], base, full).columns("gain")
        rows.append(row)
    frame = pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan)
    return frame.reindex(columns=list(dict.fromkeys([*frame, *RECOVERIES])))

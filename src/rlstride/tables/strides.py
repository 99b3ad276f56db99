"""What striding saves: a striding run beside plain RL of the same model, algorithm and seed.

Accuracy over steps is made monotone (isotonic regression, both runs alike) and read off by linear interpolation; the
goal is plain RL's at its last step. Seconds and tokens are the training's, searches inside, scoring outside.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rlstride.arrays import Floats
from rlstride.ledger import last_done
from rlstride.stats.intervals import paired_difference_interval
from rlstride.study.stride_pairs import stride_pairs_of
from rlstride.study.study import Cell
from rlstride.tables.columns import EARLIER
from rlstride.tables.results import StudyResults
from rlstride.tables.specs import TABLES
from rlstride.trajectory.manifest import Manifest

UNITS = {"steps": "step", "seconds": "seconds", "tokens": "tokens"}  # what is saved: the column that it is read off
_SEARCHES = ("jumps", "jumps_taken_back", "searches")
_ROUNDING = 1e-12  # of an accuracy that is reached exactly


def progress(scored: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Accuracy and cost of a run's kept steps, ascending, the base (step 0) among them.

    Args:
        scored: step, accuracy, low and high of each kept step and the base, at one decoding.
        manifest: of the run; says what its steps cost.

    Returns:
        step; seconds and tokens of training up to it, NaN where the run did not record them; accuracy as measured,
        low and high, its 95 % interval; ``monotone``, the accuracy made monotone.
    """
    from sklearn.isotonic import IsotonicRegression  # takes two seconds, which most tables need not wait

    cost = {record.step: (record.seconds, record.tokens) for record in manifest.steps} | {0: (0.0, 0)}
    table = scored[scored["step"].isin(cost)].sort_values("step", ignore_index=True)
    spent = pd.DataFrame([cost[step] for step in table["step"]], columns=["seconds", "tokens"], dtype=float)
    measured = table[["accuracy", "low", "high"]].astype(float)
    monotone = IsotonicRegression().fit_transform(table["step"], measured["accuracy"])
    return pd.concat([table["step"].astype(float), spent, measured], axis=1).assign(monotone=monotone)


def compare(plain: pd.DataFrame, striding: pd.DataFrame) -> dict[str, float]:
    """What each of two runs took to plain RL's last accuracy.

    Args:
        plain: its :func:`progress`.
        striding: likewise.

    Returns:
        ``base``, the measured accuracy that both start from; ``goal``; ``steps`` and ``stride_steps`` to it;
        ``steps_ratio``, ``seconds_ratio`` and ``tokens_ratio``, striding over plain; ``steps_ratio_0.5``, ...: to
        these shares of plain RL's gain. Infinite where the striding run never gets there, NaN where plain RL gained
        nothing, or a cost is not known.
    """
    base, goal = float(plain["accuracy"].iloc[0]), float(plain["monotone"].iloc[-1])
    taken, striding_taken = reach(plain, goal), reach(striding, goal)
    earlier = {share: base + share * (goal - base) for share in EARLIER}
    return {
        "base": base,
        "goal": goal,
        "steps": taken["step"],
        "stride_steps": striding_taken["step"],
        **{f"{unit}_ratio": _ratio(striding_taken[column], taken[column]) for unit, column in UNITS.items()},
        **{
            f"steps_ratio_{share:g}": _ratio(reach(striding, accuracy)["step"], reach(plain, accuracy)["step"])
            for share, accuracy in earlier.items()
        },
    }


def reach(run: pd.DataFrame, goal: float) -> dict[str, float]:
    """Where a run first reaches an accuracy, between two kept steps if need be.

    Args:
        run: its :func:`progress`.
        goal: the accuracy.

    Returns:
        step, seconds and tokens; infinite where the run never reaches it, 0 where its base has it.
    """
    accuracy = run["monotone"].to_numpy(float)  # (kept steps + 1,)
    columns = UNITS.values()
    if accuracy[-1] < goal - _ROUNDING:
        return dict.fromkeys(columns, math.inf)
    after = int(np.argmax(accuracy >= goal - _ROUNDING))
    if after == 0:
        return dict.fromkeys(columns, 0.0)
    share = (goal - accuracy[after - 1]) / (accuracy[after] - accuracy[after - 1])
    return {
        column: float(run[column].iloc[after - 1] + share * (run[column].iloc[after] - run[column].iloc[after - 1]))
        for column in columns
    }


def compare_ends(plain: Floats, striding: Floats) -> dict[str, float]:
    """The two runs' last accuracies on the same problems, (problems,) each: ``end``, ``stride_end``, and
    ``end_difference``, striding less plain, with its paired 95 % interval.
    """
    difference = paired_difference_interval(striding, plain)
    ends = {"end": float(plain.mean()), "stride_end": float(striding.mean())}
    return ends | difference.columns("end_difference")


def searches(ledger: Sequence[dict[str, Any]], seconds: float) -> dict[str, float]:
    """What the searches of a striding run did and cost, from its ledger; empty where that does not tell.

    Args:
        ledger: the run's.
        seconds: of the whole training.

    Returns:
        ``jumps``, ``jumps_taken_back``, ``searches``; ``search_share``, the searches' share of the training's time.
    """
    entry = last_done(ledger, "train")
    if entry is None or "search_seconds" not in entry:
        return {}
    return {name: entry[name] for name in _SEARCHES} | {"search_share": _ratio(entry["search_seconds"], seconds)}


def summarised(table: pd.DataFrame) -> dict[str, float]:
    """What a table of comparisons says as a whole.

    Args:
        table: rows of :func:`compare`, :func:`compare_ends` and :func:`searches`, one for each pair of runs.

    Returns:
        ``pairs``, those in which plain RL gained; ``never``, how many of these striding runs do not get there;
        the medians of every ratio and of ``search_share``, by name; ``steps_ratio_worst``, the 90th percentile;
        ``lower``, how many end lower beyond noise, of ``ends``, those whose ends were compared.
    """
    ratios = [f"{unit}_ratio" for unit in UNITS] + [f"steps_ratio_{share:g}" for share in EARLIER]
    steps = table["steps_ratio"].dropna().astype(float)  # a table without rows has no dtype
    return {
        "pairs": len(steps),
        "never": int(np.isinf(steps).sum()),
        **{name: float(table[name].median()) for name in (*ratios, "search_share")},
        "steps_ratio_worst": float(steps.quantile(0.9, interpolation="higher")) if len(steps) else math.nan,
        "lower": int((table["end_difference_high"] < 0).sum()),
        "ends": int(table["end_difference"].notna().sum()),
    }


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to take a share of."""
    return numerator / denominator if 0 < denominator < math.inf else math.nan


def strides_table(results: StudyResults) -> pd.DataFrame:
    """One row for each pair of twins whose kept steps were both scored on validation problems.

    Returns:
        model; algorithm, that of plain RL; seed; task; decoding, the headline one; the rates of both;
        :func:`rlstride.tables.strides.compare` on validation problems; ``compare_ends`` on test problems, where both
        were scored on them; ``searches``, where the ledger tells of them.
    """
    study, decoding, rows = results.study, results.headline, list[dict[str, Any]]()
    for pair in stride_pairs_of(study):
        plain, striding = (_progress(results, cell) for cell in pair.cells)
        if plain is None or striding is None:
            continue
        rates = [study.algorithm(cell).learning_rate for cell in pair.cells]
        ends = [results.of(cell).last_scores(decoding).get("full") for cell in pair.cells]
        rows.append(
            {"model": pair.plain.model, "algorithm": pair.plain.algorithm, "seed": pair.plain.seed}
            | {"task": study.spec.task, "decoding": decoding}
            | dict(zip(("learning_rate", "stride_learning_rate"), rates, strict=True))
            | compare(plain, striding)
            | (compare_ends(ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else {})
            | searches(results.of(pair.striding).ledger, float(striding["seconds"].iloc[-1]))
        )
    frame = pd.DataFrame(rows).reindex(columns=list(TABLES["strides"].columns))
    return frame.astype(dict.fromkeys(("jumps", "jumps_taken_back", "searches"), "Int64"))


def progress_table(results: StudyResults) -> pd.DataFrame:
    """Accuracy on validation problems and cost of every kept step of the twins: what strides.csv is read off.

    Returns:
        model; algorithm, that of plain RL for both; seed; stride, whether it is the striding run; decoding; then as
        :func:`rlstride.tables.strides.progress`.
    """
    frames = []
    for pair in stride_pairs_of(results.study):
        model, algorithm, seed = pair.plain.model, pair.plain.algorithm, pair.plain.seed
        for cell in pair.cells:
            found = _progress(results, cell)
            if found is not None:
                found = found.assign(model=model, algorithm=algorithm, seed=seed, stride=cell == pair.striding)
                frames.append(found.assign(decoding=results.headline))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return frame.reindex(columns=list(TABLES["stride-progress"].columns))


def _progress(results: StudyResults, cell: Cell) -> pd.DataFrame | None:
    """None where the run is not finished, or its kept steps were not scored."""
    scored, manifest = results.of(cell).validation, results.of(cell).manifest
    if scored.empty or manifest is None:
        return None
    scored = scored[scored["decoding"] == results.headline]
    return None if scored.empty else progress(scored, manifest)

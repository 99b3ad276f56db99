"""Accuracy of the kept steps: the one thing beside weights that a method may look at."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rlstride.errors import RequestError

_VARIANT = "checkpoint"
_SPLIT = "validation"
_NEEDED = ("variant", "step", "split", "decoding", "accuracy")


def read_accuracies(evaluations: Path, steps: Iterable[int], decoding: str) -> dict[int, float]:
    """Validation accuracy of some kept steps. Rows of any other step are not looked at.

    Args:
        evaluations: Parquet written by ``rlstride evaluate TRAJECTORY --split validation``.
        steps: the kept steps that are needed.
        decoding: the named decoding, such as ``t1.0``.

    Returns:
        accuracy in [0, 1] by step, in the order of ``steps``.

    Raises:
        RequestError: the file is missing or no such table, lacks one of the steps, or names a step more than once.
    """
    frame = _read(evaluations)
    frame = frame[(frame["variant"] == _VARIANT) & (frame["split"] == _SPLIT)]
    if decoding not in set(frame["decoding"]):
        known = ", ".join(sorted(set(frame["decoding"]))) or "none"
        raise RequestError(f"{evaluations}: no {_SPLIT} accuracy at decoding {decoding!r}; it has: {known}")
    frame = frame[frame["decoding"] == decoding]
    found: dict[int, float] = {}
    for step in steps:
        values = frame.loc[frame["step"] == step, "accuracy"]
        if len(values) != 1:
            count = "no row" if values.empty else f"{len(values)} rows"
            raise RequestError(f"{evaluations}: {count} for step {step} at decoding {decoding!r}; one is needed")
        found[step] = float(values.iloc[0])
        if not 0 <= found[step] <= 1:
            raise RequestError(f"{evaluations}: step {step}: accuracy {found[step]} is not in [0, 1]")
    return found


def _read(evaluations: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(evaluations)
    except FileNotFoundError as error:
        raise RequestError(f"{evaluations}: there is no such file; rlstride evaluate makes it") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"{evaluations}: not a Parquet table ({' '.join(str(error).split())})") from error
    for column in _NEEDED:
        if column not in frame.columns:
            raise RequestError(f"{evaluations}: there is no column {column!r}; expected a table of rlstride evaluate")
    return frame

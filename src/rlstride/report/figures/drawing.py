"""What every figure is drawn from and returns, and what several of them need."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlstride.report.figures import style
from rlstride.study.study import Study

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Drawing:
    """A figure and what it was drawn from."""

    figure: Figure
    data: pd.DataFrame


def headline(frame: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The scored rows of the decoding that claims are read at."""
    return frame[(frame["decoding"] == study.spec.evaluation.headline) & frame["accuracy"].notna()]


def by_model_or_algorithm(frame: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Of a pooled table the rows of each model; of each algorithm where a study has a single model."""
    return frame[frame["pool"] == ("model" if len(study.models) > 1 else "algorithm")]


def over_seeds(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean over seeds, with the envelope of the seeds' intervals."""
    return frame.groupby(keys, as_index=False).agg(
        accuracy=("accuracy", "mean"), low=("low", "min"), high=("high", "max"), seeds=("seed", "nunique")
    )


def select(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows that have these values."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def models_of(frame: pd.DataFrame, study: Study) -> list[str]:
    """A table's models, in the study's order."""
    return [model for model in study.models if model in set(frame["model"])]


def algorithms_of(frame: pd.DataFrame, study: Study) -> list[str]:
    """A table's algorithms and controls, in the study's order."""
    known = [*study.algorithms, *study.controls]
    return [algorithm for algorithm in known if algorithm in set(frame["algorithm"])]


def accuracy_references(axes: Axes, rows: pd.DataFrame, lines: dict[str, object]) -> None:
    """Horizontal lines at the mean test accuracy of some variants."""
    names = {"base": "base (test)", "frozen": "frozen control (test)", "full": "full run (test)"}
    for variant, line in lines.items():
        values = rows.loc[rows["variant"] == variant, "accuracy"]
        if len(values):
            style.reference_line(axes, float(values.mean()), names[variant], line)


def accuracy_label(study: Study, split: str) -> str:
    """Names an axis of accuracies."""
    return f"{split} accuracy ({study.spec.evaluation.headline})"

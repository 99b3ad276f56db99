"""Problems of a data set: its rows as prompts, and the answers that a verifier expects.

Rows come from local JSONL, CSV or Parquet files or from the Hugging Face hub. A prompt stands in one split alone: one
of test is taken out of validation and train, one of validation out of train, and repeated rows count once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from rlstride.config.tasks import DatasetSpec
from rlstride.errors import RequestError, first_line
from rlstride.tasks.listed import PRECEDENCE, Columns, ListedTask, Row, is_asked_for, template, without
from rlstride.tasks.math_answers import MathVerifier
from rlstride.tasks.problems import SPLITS, Problem, Split, split_of
from rlstride.tasks.verifiers import Verifier, verifier_named

_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".jsonl": lambda file: pd.read_json(file, lines=True, dtype=False, convert_dates=False),
    ".json": lambda file: pd.read_json(file, dtype=False, convert_dates=False),
    ".csv": lambda file: pd.read_csv(file, dtype=str, keep_default_na=False),
    ".parquet": pd.read_parquet,
}
_VALIDATION = "validation/"  # before a prompt, where a tenth of train is drawn by its hash


@dataclass(frozen=True)
class DatasetTask(ListedTask):
    """A data set as a task.

    Attributes:
        name: in tables.
        spec: its entry of tasks.yaml.
    """

    spec: DatasetSpec

    def rows(self, split: Split) -> Mapping[str, Row]:
        return self._rendered[split]

    @cached_property
    def verifier(self) -> Verifier | MathVerifier:
        return verifier_named(self.spec.verifier, self.spec.pattern, f"{self.where}: verifier")

    @cached_property
    def _rows(self) -> dict[Split, list[Columns]]:
        spec = self.spec
        if not spec.splits:
            return {"train": _read(spec, spec.source, self.where)}
        return {split: _read(spec, place, self.where) for split, place in spec.splits.items()}

    @cached_property
    def _rendered(self) -> dict[Split, dict[str, Row]]:
        """Rows by prompt, each prompt in one split."""
        prompt, answer = (template(text, self.where) for text in (self.spec.prompt, self.spec.answer))
        is_asked = is_asked_for(self.spec.where, self.where)
        found: dict[Split, dict[str, Row]] = {split: {} for split in SPLITS}
        for own, rows in self._rows.items():
            for columns in filter(is_asked, rows):
                problem = Problem(prompt(columns) or "", answer(columns) or "")
                split = own if self.spec.splits else split_of(problem.prompt)
                if split == "train" and "validation" not in self.spec.splits and self.spec.splits:
                    split = "validation" if split_of(_VALIDATION + problem.prompt) == "validation" else "train"
                found[split].setdefault(problem.prompt, Row(problem, columns))
        for place, split in enumerate(PRECEDENCE):
            found[split] = without(found[split], [found[earlier] for earlier in PRECEDENCE[:place]])
            if not found[split]:
                raise RequestError(f"{self.where}: there is no {split} problem in {self.spec.source}")
        return found


@lru_cache(maxsize=8)
def _built(name: str, spec: str) -> DatasetTask:
    return DatasetTask(name, DatasetSpec.model_validate_json(spec))


def build(name: str, spec: DatasetSpec) -> DatasetTask:
    """The task that an entry of tasks.yaml describes; one in each process, as its rows take time to read."""
    return _built(name, spec.model_dump_json())


def _read(spec: DatasetSpec, place: str, where: str) -> list[Columns]:
    """The rows of a file, or of a split on the hub.

    Raises:
        RequestError: there is no such thing, or it cannot be read.
    """
    file = Path(place)
    if file.suffix in _READERS:
        try:
            return _rows_of(_READERS[file.suffix](file).to_dict("records"))
        except FileNotFoundError as error:
            raise RequestError(f"{where}: {file}: there is no such file") from error
        except (OSError, ValueError) as error:
            raise RequestError(f"{where}: {file}: cannot be read ({first_line(error)})") from error
    from datasets import load_dataset

    split = place if spec.splits else "train"
    try:
        loaded = load_dataset(spec.source, spec.subset, split=split, revision=spec.revision)
    except Exception as error:  # the hub's errors are of a dozen kinds
        raise RequestError(f"{where}: {spec.source}: the data set cannot be read ({first_line(error)})") from error
    return _rows_of(loaded)


def _rows_of(records: Iterable[Mapping[Any, Any]]) -> list[Columns]:
    return [{str(name): value for name, value in record.items()} for record in records]

"""The finished smoke study, and where its results are."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pipeline import ROOT, SMOKE_STUDY

from rlstride.study.load import load_study
from rlstride.study.plan import planned_jumps, predictions
from rlstride.study.study import Study

PROFILE = ROOT / "profiles" / "local"


@dataclass(frozen=True)
class Finished:
    """The results folder of a finished smoke study."""

    results: Path

    @property
    def root(self) -> Path:
        return self.results / "smoke"

    @property
    def cell(self) -> Path:
        return self.root / "tiny-llama" / "grpo" / "seed0"

    @property
    def request(self) -> tuple[str | Path, ...]:
        return ("--profile", PROFILE, "--configfile", SMOKE_STUDY, "--config", f"results={self.results}")

    @property
    def study(self) -> Study:
        return load_study(self.root / "study.yaml")

    @property
    def variants(self) -> list[str]:
        """Everything that is scored on the test problems of the cell."""
        spec = self.study.spec
        made = [model.variant for model in (*predictions(spec), *planned_jumps(spec).values())]
        return ["base", "frozen", "full", *spec.ablation.variants, *made]

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.root / "tables" / f"{name}.csv")

    def accuracy(self, variant: str, decoding: str = "t1.0") -> pd.Series:
        """The row of a variant, with accuracy, low and high."""
        table = self.table("accuracy")
        (row,) = [row for _, row in table[(table.variant == variant) & (table.decoding == decoding)].iterrows()]
        return row

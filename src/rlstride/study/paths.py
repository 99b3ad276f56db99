"""Where everything of a study lies. Snakemake's rules and the verbs read their paths from here."""

from dataclasses import dataclass
from pathlib import Path

from rlstride.config.algorithms import Distillation
from rlstride.config.models import PublishedModel
from rlstride.config.section import digest
from rlstride.errors import RequestError
from rlstride.study.plan import step_folder
from rlstride.study.study import Cell, Study

SOURCE_REPORT = "fetched.json"  # what the folder of a fetched model receives last


@dataclass(frozen=True)
class StudyPaths:
    """results/{study}/..."""

    root: Path

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def nulls(self, model: str) -> Path:
        """What the model's base scores by being asked in other ways."""
        return self.root / model / "nulls.parquet"

    def cell(self, cell: Cell) -> "CellPaths":
        return CellPaths(self.root / cell.model / cell.algorithm / f"seed{cell.seed}")


@dataclass(frozen=True)
class CellPaths:
    """results/{study}/{model}/{algorithm}/seed{n}/..."""

    root: Path

    @property
    def trajectory(self) -> Path:
        return self.root / "trajectory"

    @property
    def manifest(self) -> Path:
        return self.trajectory / "manifest.json"

    @property
    def training_state(self) -> Path:
        """Optimiser, RNG and data order of an unfinished run: never a declared output, so a failed job keeps it."""
        return self.root / "training"

    @property
    def spectra(self) -> Path:
        return self.root / "spectra.parquet"

    @property
    def models(self) -> Path:
        """Predicted models, one HF folder for each variant."""
        return self.root / "models"

    @property
    def validation(self) -> Path:
        """Accuracy of the kept steps on validation problems: all that methods may look at."""
        return self.root / "validation.parquet"

    @property
    def accuracy(self) -> Path:
        """Accuracy of base, controls, full run and predicted models on test problems."""
        return self.root / "accuracy.parquet"

    @property
    def ablation(self) -> Path:
        """Accuracy of the edited models on the same problems."""
        return self.root / "ablation.parquet"

    @property
    def nulls(self) -> Path:
        """What the base of the cell's model scores by being asked in other ways."""
        return StudyPaths(self.root.parents[2]).nulls(self.root.parents[1].name)

    @property
    def benchmarks(self) -> Path:
        """Scores on the study's benchmarks."""
        return self.root / "benchmarks.parquet"

    @property
    def drift(self) -> Path:
        """How far kept steps and edited models are from the base in what they say, on validation problems."""
        return self.root / "drift.parquet"

    @property
    def drift_tokens(self) -> Path:
        """Which tokens' probabilities moved."""
        return self.root / "drift-tokens.parquet"

    @property
    def rounding(self) -> Path:
        """What rounding to bfloat16 makes of the updates."""
        return self.root / "rounding.parquet"

    @property
    def dynamics(self) -> Path:
        return self.root / "dynamics.parquet"

    @property
    def measured(self) -> Path:
        """An empty file, there once all of the above is."""
        return self.root / "measured.done"

    def jump(self, variant: str) -> "CellPaths":
        """An early stop of this cell: it has a trajectory, a training state and a ledger of its own."""
        return CellPaths(self.root / variant)

    @property
    def ledger(self) -> Path:
        """One JSONL file for each stage, so that parallel jobs never write to the same file."""
        return self.root / "ledger"


def study_paths(study: Study) -> StudyPaths:
    """The folders of a study."""
    return StudyPaths(Path(study.spec.results) / study.spec.name)


def base_folder(study: Study, model: str) -> Path:
    """Where a model's base lies. Bases are shared by studies, and named by the hash of all that they are made from."""
    made_from = {"model": study.models[model].model_dump(mode="json"), "task": study.task.model_dump(mode="json")}
    return Path(study.spec.results) / "bases" / f"{model}-{digest(made_from)}"


def source_folder(study: Study, model: str) -> Path | None:
    """Where a published model is fetched to, one folder for all models of this source; None of one in a folder."""
    spec = study.models[model]
    if not isinstance(spec, PublishedModel) or (isinstance(spec.source, str) and Path(spec.source).is_dir()):
        return None
    made_from = spec.model_dump(mode="json", include={"source", "revision"})
    return Path(study.spec.results) / "sources" / f"{Path(str(spec.source)).name}-{digest(made_from)}"


def required_base(study: Study, model: str) -> Path:
    """Where a model's base lies.

    Raises:
        RequestError: it is not made yet.
    """
    base = base_folder(study, model)
    if not (base / "config.json").is_file():
        raise RequestError(
            f"{base}: the base of {model} is not there; "
            f"make it with rlstride pretrain --study {study.path} --model {model} --out {base}"
        )
    return base


def teacher_folder(study: Study, cell: Cell) -> Path | None:
    """The Hugging Face folder that a distilled cell learns from; None where it has no teacher."""
    algorithm, teacher = study.algorithm(cell), study.teacher(cell)
    if teacher is not None:
        return study_paths(study).cell(teacher).trajectory / step_folder(study.spec.training.steps)
    return Path(algorithm.teacher) if isinstance(algorithm, Distillation) else None

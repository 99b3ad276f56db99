"""The manifest of a trajectory: what was kept, what it came from, and what it cost."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rlstride.atomic_files import write_text
from rlstride.errors import RequestError

# 2: checkpoints of other kinds than Hugging Face folders, read where they are; 3: one of several models in a
# checkpoint, and a run's own tokenizer, either of which an earlier version would pass over.
FORMAT_VERSION = 3
REMEMBERED = (".verified.json*", ".architecture.json*")  # beside a manifest: caches, which nothing is lost with
_LIBRARIES = ("rlstride", "torch", "transformers", "trl", "peft", "accelerate", "safetensors", "tokenizers")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class BaseRecord(_Section):
    """The model that the trajectory starts from, as step 0."""

    name: str
    path: str  # relative to the manifest's folder, so that results can be moved
    sha256: dict[str, str]  # digest of each weight file, and of config.json
    origin: str | None = None  # address on the hub that the folder is a copy of


class StepRecord(_Section):
    """One kept checkpoint."""

    step: int
    folder: str  # relative to the manifest's folder
    kind: str = "hf"  # how the weights are stored: hf, adapter (over the base), dcp, fsdp or zero
    model_key: str | None = None  # what precedes the model's names, where the checkpoint holds several models
    origin: str | None = None  # address on the hub that the folder is a copy of
    sha256: dict[str, str]  # digest of each weight file
    dtype: str
    reward: float | None = None  # mean reward of this step's rollouts
    tokens: int | None = None  # completion tokens sampled since step 0
    seconds: float | None = None  # wall-clock seconds of training since step 0


Stalled = Literal["constant reward", "unmoved"]


class TrainingRecord(_Section):
    """One step, kept or not."""

    step: int
    reward: float | None  # mean of the rollouts; None where there are none, as in supervised controls
    tokens: int  # completion tokens sampled in this step
    seconds: float  # wall-clock seconds of this step


class _Format(_Section):
    format_version: int = FORMAT_VERSION


class Manifest(_Format):
    """manifest.json: written last, so a trajectory that has one is whole."""

    base: BaseRecord
    algorithm: str
    seed: int
    config_hash: str
    steps: list[StepRecord]
    training: list[TrainingRecord] = []
    stalled: Stalled | None = None  # of a run that learnt nothing
    libraries: dict[str, str] = {}
    tokenizer: str | None = None  # folder of the run's own tokenizer, relative to the manifest's; None: the base's

    def write(self, folder: Path) -> None:
        """Writes manifest.json into a trajectory's folder, whole or not at all."""
        write_text(folder / "manifest.json", self.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a trajectory's folder.

    Raises:
        RequestError: there is none, it is damaged, or a newer rlstride wrote it.
    """
    path = folder / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
        written = _Format.model_validate_json(text).format_version
        if written > FORMAT_VERSION:  # before the rest, which a later format may have changed
            raise RequestError(f"{path}: format {written} is a newer rlstride's; this one reads up to {FORMAT_VERSION}")
        return Manifest.model_validate_json(text)
    except FileNotFoundError as error:
        raise RequestError(
            f"{folder}: no manifest.json here; expected a finished trajectory, as rlstride train or ingest makes one"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{path}: damaged manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a run's weights are."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions

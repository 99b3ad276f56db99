"""Reads and validates a study: its own file, and the catalogues that its names refer to."""

import difflib
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rlstride.errors import RequestError
from rlstride.study.config import (
    Algorithm,
    AlgorithmsFile,
    ChainSpec,
    Definitions,
    ModelsFile,
    PublishedModel,
    StudyFile,
    TasksFile,
    TinyModel,
)

_SHORT_NAMES = {"learning_rate": "lr", "epsilon": "eps", "warmup_steps": "warmup", "max_grad_norm": "clip"}
_Section = TypeVar("_Section", bound=BaseModel)
_Catalogue = ModelsFile | AlgorithmsFile | TasksFile


@dataclass(frozen=True)
class Cell:
    """One RL run of a study."""

    model: str
    algorithm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model}/{self.algorithm}/{self.seed}"


@dataclass(frozen=True)
class Study:
    """A validated study with everything that its names refer to."""

    path: Path
    spec: StudyFile
    task: ChainSpec
    models: dict[str, TinyModel | PublishedModel]
    algorithms: dict[str, Algorithm]  # sweeps expanded, controls left out
    controls: dict[str, Algorithm]

    @property
    def cells(self) -> list[Cell]:
        """The RL cells, in the order of the file. Controls are not among them."""
        return self._grid(self.algorithms)

    @property
    def control_cells(self) -> list[Cell]:
        """The runs of the controls."""
        return self._grid(self.controls)

    def cell(self, text: str) -> Cell:
        """The cell (or control) that MODEL/ALGORITHM/SEED names.

        Raises:
            RequestError: the study has no such cell.
        """
        known = {str(cell): cell for cell in [*self.cells, *self.control_cells]}
        if text not in known:
            raise RequestError(f"{self.path}: there is no cell {text!r}; the study has {', '.join(known)}")
        return known[text]

    def algorithm(self, cell: Cell) -> Algorithm:
        """The trainer and hyper-parameters of a cell."""
        return {**self.algorithms, **self.controls}[cell.algorithm]

    def _grid(self, algorithms: dict[str, Algorithm]) -> list[Cell]:
        return [Cell(*key) for key in itertools.product(self.models, algorithms, self.spec.seeds)]


def load_study(path: str | Path) -> Study:
    """The study in a YAML file.

    Raises:
        RequestError: a file is missing or no YAML, a key is unknown, a value is out of range, a name refers to nothing.
    """
    path = Path(path)
    return resolve_study(read_yaml(path), path)


def resolve_study(data: Any, path: Path) -> Study:
    """The study that ``data`` states, with every name looked up: in its own ``define`` first, then in the catalogues.

    Args:
        data: the content of a study file.
        path: the file that it was read from: named in errors, and the place from which catalogues are searched.

    Raises:
        RequestError: see :func:`load_study`.
    """
    spec = validate(data, StudyFile, path)
    for name in spec.sweep:
        if name not in spec.algorithms:
            raise RequestError(
                f"{path}: sweep: {name!r} is not one of the study's algorithms{_hint(name, spec.algorithms)}"
            )
    tasks = _look_up(path, "task", [spec.task], spec.define.tasks, "tasks.yaml", TasksFile)
    models = _look_up(path, "models", spec.models, spec.define.models, "models.yaml", ModelsFile)
    algorithms = _look_up(
        path, "algorithms", spec.algorithms, spec.define.algorithms, "algorithms.yaml", AlgorithmsFile
    )
    controls = _look_up(path, "controls", spec.controls, spec.define.algorithms, "algorithms.yaml", AlgorithmsFile)
    return Study(
        path=path,
        spec=spec,
        task=tasks[spec.task],
        models=models,
        algorithms=expand_sweep(path, spec, algorithms),
        controls=controls,
    )


def resolved_yaml(study: Study) -> str:
    """The study as one file that needs no catalogue beside it: what a results folder keeps, and jobs read."""
    define = Definitions(
        tasks={study.spec.task: study.task},
        models=study.models,
        algorithms={name: study.algorithms[name] for name in study.spec.algorithms} | study.controls,
    )
    plain = study.spec.model_copy(update={"define": define}).model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, width=120)


def _look_up(
    path: Path, key: str, names: list[str], defined: Mapping[str, Any], file: str, catalogue: type[_Catalogue]
) -> dict[str, Any]:
    """The entries that a key's names refer to; the catalogue is read only where the study defines too little itself."""
    known: dict[str, Any] = dict(defined)
    if any(name not in known for name in names):
        known = validate_entries(find_catalogue(path, file), catalogue) | known
    for name in names:
        if name not in known:
            raise RequestError(f"{path}: {key}: there is no {name!r} in {file}{_hint(name, known)}")
    return {name: known[name] for name in names}


def expand_sweep(path: Path, spec: StudyFile, catalogue: dict[str, Algorithm]) -> dict[str, Algorithm]:
    """The study's algorithms, each followed by one for every combination of its swept values."""
    expanded: dict[str, Algorithm] = {}
    for name in spec.algorithms:
        expanded[name] = catalogue[name]
        swept = spec.sweep.get(name)
        if not swept:
            continue
        for values in itertools.product(*swept.values()):
            changes = dict(zip(swept, values, strict=True))
            suffix = "-".join(f"{_SHORT_NAMES.get(key, key)}{_compact(value)}" for key, value in changes.items())
            merged = catalogue[name].model_dump() | changes
            expanded[f"{name}-{suffix}"] = validate(merged, Algorithm, path, prefix=f"sweep.{name}.")
    return expanded


def digest(value: BaseModel | dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of a specification."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Keys given twice are refused, since YAML would silently keep the last one."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError as error:
        raise RequestError(f"{path}: there is no such file") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def find_catalogue(study: Path, name: str) -> Path:
    """A catalogue beside the study file, in the nearest folder above it, or where the command runs."""
    for folder in [*study.resolve().parents, Path.cwd()]:
        if (folder / name).is_file():
            return folder / name
        if (folder / "config" / name).is_file():
            return folder / "config" / name
    raise RequestError(f"{study}: there is no {name} beside it, in a folder above it or in ./config")


def validate(data: Any, section: type[_Section], path: Path, prefix: str = "") -> _Section:
    """``data`` as a ``section``; the first mistake as one sentence naming file and key."""
    if not isinstance(data, dict):
        raise RequestError(f"{path}: expected a mapping of keys to values")
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise RequestError(f"{path}: {_sentence(error, section, prefix)}") from error


def validate_entries(path: Path, catalogue: type[_Catalogue]) -> dict[str, Any]:
    """The entries of a catalogue by name."""
    entries: dict[str, Any] = validate(read_yaml(path), catalogue, path).root
    return entries


def _sentence(error: ValidationError, section: type[BaseModel], prefix: str) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith(("TinyModel", "PublishedModel"))]
    key = prefix + ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{_hint(location[-1], _known_keys(section, location[:-1]))}"
    if first["type"] == "missing":
        return f"{key}: this key is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float)) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{shown}" if key else f"{message}{shown}"


def _known_keys(section: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = section.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        section = field.annotation
    return list(section.model_fields)


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _compact(value: Any) -> str:
    """A value as it stands in a name: 0.0003 as 3e-4."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:g}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:e}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but a key given twice is an error."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)

"""Reads and validates a study: its own file, and the catalogues that its names refer to."""

import difflib
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, RootModel, ValidationError

from rlstride.errors import RequestError
from rlstride.study.algorithms import Algorithm, Distillation, PolicyGradient
from rlstride.study.config import AlgorithmsFile, Definitions, ModelsFile, StudyFile, TasksFile
from rlstride.study.models import PublishedModel, TinyModel
from rlstride.study.plan import why_not_jump
from rlstride.study.tasks import TaskSpec

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
    task: TaskSpec
    models: dict[str, TinyModel | PublishedModel]
    algorithms: dict[str, Algorithm]  # sweeps expanded, controls left out
    controls: dict[str, Algorithm]

    @property
    def cells(self) -> list[Cell]:
        """The runs that are taken apart, in the order of the file. Controls are not among them."""
        return self._grid(self.algorithms)

    @property
    def rl_cells(self) -> list[Cell]:
        """The cells that learn from a reward; supervised runs, which a study may list too, are not among them."""
        return [cell for cell in self.cells if isinstance(self.algorithm(cell), PolicyGradient)]

    @property
    def jumping_cells(self) -> list[Cell]:
        """The RL cells beside which the study's jumps are run: those that do not stride."""
        if not self.spec.extrapolation.jumps:
            return []
        algorithms = {cell: self.algorithm(cell) for cell in self.rl_cells}
        return [cell for cell, found in algorithms.items() if isinstance(found, PolicyGradient) and not found.stride]

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

    def teacher(self, cell: Cell) -> Cell | None:
        """The cell whose last step teaches this one; None where it has no teacher, or one from outside the study."""
        algorithm = self.algorithm(cell)
        if isinstance(algorithm, Distillation) and algorithm.teacher in {**self.algorithms, **self.controls}:
            return Cell(cell.model, algorithm.teacher, cell.seed)
        return None

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
    expanded = expand_sweep(path, spec, algorithms)
    _check_minibatches(path, spec, expanded | controls)
    _check_teachers(path, spec, expanded | controls)
    _check_jumps(path, spec)
    return Study(path=path, spec=spec, task=tasks[spec.task], models=models, algorithms=expanded, controls=controls)


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


def _check_minibatches(path: Path, spec: StudyFile, algorithms: Mapping[str, Algorithm]) -> None:
    """Minibatches of equal size, each of a whole number of rollouts."""
    rollouts = spec.training.problems_per_step * spec.training.completions_per_problem
    for name, algorithm in algorithms.items():
        if isinstance(algorithm, PolicyGradient) and rollouts % algorithm.minibatches:
            raise RequestError(
                f"{path}: algorithms: {name}: {rollouts} rollouts a step cannot be split into "
                f"{algorithm.minibatches} minibatches of equal size"
            )


def _check_teachers(path: Path, spec: StudyFile, algorithms: Mapping[str, Algorithm]) -> None:
    """A teacher is an algorithm of the study that is not distilled itself, and no adapter; or a folder."""
    for name, algorithm in algorithms.items():
        if not isinstance(algorithm, Distillation):
            continue
        if isinstance(algorithms.get(algorithm.teacher), Distillation):
            raise RequestError(f"{path}: algorithms: {name}: teacher: {algorithm.teacher!r} is distilled itself")
        if algorithm.teacher in algorithms and spec.training.adapter is not None:
            raise RequestError(
                f"{path}: algorithms: {name}: teacher: {algorithm.teacher!r} trains an adapter, no whole model; "
                "name a Hugging Face folder"
            )
        if algorithm.teacher not in algorithms and not Path(algorithm.teacher).is_dir():
            raise RequestError(
                f"{path}: algorithms: {name}: teacher: {algorithm.teacher!r} is neither an algorithm of the study nor "
                f"a folder{_hint(algorithm.teacher, algorithms)}"
            )


def _check_jumps(path: Path, spec: StudyFile) -> None:
    """Each jump's window holds what its method needs."""
    for name in spec.extrapolation.jumps:
        if reason := why_not_jump(spec, name):
            raise RequestError(f"{path}: extrapolation: jumps: {name}: {reason}")


def expand_sweep(path: Path, spec: StudyFile, catalogue: dict[str, Algorithm]) -> dict[str, Algorithm]:
    """The study's algorithms, each followed by one for every other combination of its swept values."""
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
            swept_algorithm = validate(merged, type(catalogue[name]), path, prefix=f"sweep.{name}.")
            if swept_algorithm != catalogue[name]:
                expanded[f"{name}-{suffix}"] = swept_algorithm
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
        raise RequestError(f"{path}: {_sentence(error, section, data, prefix)}") from error


def validate_entries(path: Path, catalogue: type[_Catalogue]) -> dict[str, Any]:
    """The entries of a catalogue by name."""
    entries: dict[str, Any] = validate(read_yaml(path), catalogue, path).root
    return entries


def _sentence(error: ValidationError, section: type[BaseModel], data: Any, prefix: str) -> str:
    first = error.errors()[0]
    location = _location(first["loc"], data)
    key = prefix + ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{_hint(location[-1], _known_keys(section, location[:-1]))}"
    if first["type"] == "missing":
        return f"{key}: this key is missing"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        return (
            f"{key}.{context['discriminator'].strip(chr(39))}: {context['tag']!r} is none of {context['expected_tags']}"
        )
    if first["type"] == "union_tag_not_found":
        return f"{key}.{first['ctx']['discriminator'].strip(chr(39))}: this key is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float)) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{shown}" if key else f"{message}{shown}"


def _location(parts: tuple[int | str, ...], data: Any) -> list[str]:
    """Where in the file a mistake is: pydantic's location without the names of the alternatives that it tried."""
    location = []
    for index, part in enumerate(parts):
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
        elif index < len(parts) - 1:
            continue
        location.append(str(part))
    return location


def _known_keys(section: type[BaseModel], location: list[str]) -> list[str]:
    """The keys of the section at a location; where it has alternatives, the keys of all of them."""
    sections = [section]
    for part in location:
        fields = [s.model_fields["root" if issubclass(s, RootModel) else part] for s in sections if _has(s, part)]
        if fields:  # else the part is a name in a mapping of names to sections
            sections = [inner for field in fields for inner in _sections_in(field.annotation)]
    return sorted({name for found in sections for name in found.model_fields})


def _has(section: type[BaseModel], part: str) -> bool:
    return issubclass(section, RootModel) or part in section.model_fields


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


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

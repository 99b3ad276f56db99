"""Reads YAML files and checks them against their sections: every mistake is one sentence that names file and key."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, RootModel, ValidationError

from rlstride.config.study_file import AlgorithmsFile, ModelsFile, TasksFile, VariantsFile
from rlstride.errors import RequestError

_Section = TypeVar("_Section", bound=BaseModel)
Catalogue = ModelsFile | AlgorithmsFile | TasksFile | VariantsFile


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


def read_study(path: Path) -> Any:
    """What a study file holds, laid over the study that its key ``based_on`` names, and so on.

    Mappings are laid over one another key by key; all else replaces what was there.

    Raises:
        RequestError: a file cannot be read, is no mapping, or is based on itself.
    """
    return _laid_over_its_base(path, ())


def _laid_over_its_base(path: Path, above: tuple[Path, ...]) -> Any:
    if path.resolve() in above:
        raise RequestError(f"{path}: based_on: this study is based on itself")
    data = read_yaml(path)
    if not isinstance(data, dict):
        if above:
            raise RequestError(f"{path}: expected a mapping of keys to values")
        return data
    base = data.pop("based_on", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise RequestError(f"{path}: based_on: expected the name of a study file, not {base!r}")
    return laid_over(_laid_over_its_base(path.parent / base, (*above, path.resolve())), data)


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings as one: where both hold a mapping under a key it is laid over too, else what is above counts."""
    merged = dict(below)
    for key, value in above.items():
        inner = below.get(key)
        merged[key] = laid_over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


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


def validate_entries(path: Path, catalogue: type[Catalogue]) -> dict[str, Any]:
    """The entries of a catalogue by name."""
    entries: dict[str, Any] = validate(read_yaml(path), catalogue, path).root
    return entries


def _sentence(error: ValidationError, section: type[BaseModel], data: Any, prefix: str) -> str:
    first = error.errors()[0]
    location = _location(first["loc"], data)
    key = prefix + ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{hint(location[-1], _known_keys(section, location[:-1]))}"
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


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is nearest, else all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


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

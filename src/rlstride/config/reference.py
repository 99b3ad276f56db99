"""config/README.md: every key of studies and catalogues, from the descriptions in their sections."""

from collections.abc import Iterator
from typing import Any

from rlstride.config.adapters import ADAPTERS
from rlstride.config.algorithms import ALGORITHMS
from rlstride.config.models import PublishedModel, TinyModel
from rlstride.config.study_file import StudyFile
from rlstride.config.tasks import TASK_KINDS

_INTRO = """# Configuration

`config.yaml` and the files of `studies/` are studies. The names in a study refer to the catalogues: `models.yaml`,
`algorithms.yaml`, `tasks.yaml`, and `variants.yaml` for sets of edited models. A study may define its own under
`define`. `based_on: FILE` lays a study's keys over another study's: mappings key by key, all
else as a whole.

```bash
rlstride check --study config/config.yaml              # what it will make, and what that takes
snakemake --profile profiles/local --configfile config/studies/smoke.yaml
snakemake --profile slurm --config seeds='[0,1,2]'     # a key changed
```

Editors that know YAML complete and check studies by [schema.json](schema.json). This page is written by `make docs`,
from the sections in `src/rlstride/config/`.
"""


def reference() -> str:
    """The page, in Markdown."""
    parts = [_INTRO, "## A study\n", _table(StudyFile.model_json_schema())]
    parts += list(_sections(StudyFile.model_json_schema(), {"Training", "SpectraSpec", *_SECTIONS}))
    parts += ["## algorithms.yaml\n", "Each entry names its `trainer`.\n"]
    parts += [_kind(name, kind.about, kind.section.model_json_schema()) for name, kind in ALGORITHMS.items()]
    parts += ["## training.adapter\n", "Its `kind` is one of these.\n"]
    parts += [_kind(name, kind.about, kind.section.model_json_schema()) for name, kind in ADAPTERS.items()]
    parts += ["## tasks.yaml\n", "Each entry names its `kind`.\n"]
    parts += [_kind(name, kind.about, kind.section.model_json_schema()) for name, kind in TASK_KINDS.items()]
    parts += ["## models.yaml\n", "A tiny model is pretrained here; a published one has a `source`.\n"]
    parts += [_kind("a tiny model", "", TinyModel.model_json_schema())]
    parts += [_kind("a published model", "", PublishedModel.model_json_schema())]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


_SECTIONS = (
    "Ablation",
    "Drift",
    "Extrapolation",
    "Jump",
    "Evaluation",
    "Decoding",
    "Tracking",
    "Definitions",
    "Stride",
)


def _sections(schema: dict[str, Any], names: set[str]) -> Iterator[str]:
    for name, section in schema["$defs"].items():
        if name in names:
            yield _kind(name, _first_sentence(section.get("description", "")), section)


def _kind(name: str, about: str, schema: dict[str, Any]) -> str:
    return f"### {name}\n\n{about}\n\n{_table(schema)}" if about else f"### {name}\n\n{_table(schema)}"


def _table(schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, entry in schema.get("properties", {}).items():
        default = "(needed)" if key in needed else f"`{_short(entry.get('default'))}`"
        section = schema.get("$defs", {}).get(str(entry.get("$ref", "")).rpartition("/")[2], {})
        about = _on_one_line(entry.get("description") or section.get("description", ""))
        rows.append(f"| `{key}` | {default} | {about}{_bounds(entry)} |")
    return "\n".join(rows) + "\n"


def _short(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "see below" if value else "{}"
    return str(value).replace("'", "")


def _bounds(entry: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {entry[name]:g}" for name, sign in signs.items() if name in entry]
    values = entry.get("enum")
    found += [f"one of {', '.join(map(str, values))}"] if values and len(values) < 8 else []
    return f" ({', '.join(found)})" if found else ""


def _on_one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())

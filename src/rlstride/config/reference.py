"""config/README.md: every key of studies and catalogues, from the descriptions in their sections."""

from typing import Any

from rlstride.config.adapters import ADAPTERS
from rlstride.config.algorithms import ALGORITHMS
from rlstride.config.kinds import first_paragraph
from rlstride.config.study_file import StudyFile
from rlstride.config.tasks import TASK_KINDS

_INTRO = """# Configuration

`config.yaml` and the files of `studies/` are studies. The names in a study refer to the catalogues: `models.yaml` (each
entry is a TinyModel or a PublishedModel), `algorithms.yaml`, `tasks.yaml`, and `variants.yaml` for sets of edited
models. A study may define its own under `define`. `based_on: FILE` lays a study's keys over another study's: mappings
key by key, all else as a whole.

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
    study = StudyFile.model_json_schema()
    elsewhere = {kind.section.__name__ for kinds in _KINDS.values() for kind in kinds.values()}
    parts = [_INTRO, "## A study\n", _table(study)]
    for name, section in study["$defs"].items():
        if name not in elsewhere:
            parts.append(_section(name, first_paragraph(section.get("description", "")), section))
    for title, kinds in _KINDS.items():
        [by] = {kind.by for kind in kinds.values()}
        parts += [f"## {title}\n", f"`{by}` says which of these an entry is.\n"]
        parts += [_section(name, kind.about, kind.section.model_json_schema()) for name, kind in kinds.items()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


_KINDS = {"algorithms.yaml": ALGORITHMS, "training.adapter": ADAPTERS, "tasks.yaml": TASK_KINDS}


def _section(name: str, about: str, schema: dict[str, Any]) -> str:
    return f"### {name}\n\n{about}\n\n{_table(schema)}"


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

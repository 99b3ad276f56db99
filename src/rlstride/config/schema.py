"""config/schema.json, by which editors complete and check studies; ``python -m rlstride.config.schema`` writes it."""

import json
import sys
from pathlib import Path
from typing import Any

from rlstride.atomic_files import write_text
from rlstride.config.study_file import StudyFile

_BASED_ON = {
    "type": "string",
    "title": "Based On",
    "description": "Another study's file, beside this one or by a path from it, whose keys this one's are laid over.",
}
SCHEMA_FILE = Path("config/schema.json")


def study_schema() -> dict[str, Any]:
    """The JSON schema of a study file, with every key's description and default."""
    schema = StudyFile.model_json_schema()
    needed: dict[str, Any] = {"required": schema.pop("required"), "properties": {}}
    for key, entry in schema["properties"].items():  # a study that is based on another may state a part of a section
        section = schema["$defs"].get(str(entry.get("$ref", "")).rpartition("/")[2], {})
        if "required" in section:
            needed["properties"][key] = {"required": section.pop("required")}
    schema["properties"] = {"based_on": _BASED_ON, **schema["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "if": {"not": {"required": ["based_on"]}},
        "then": needed,
        "title": "A study of rlstride",
    }


def schema_text() -> str:
    """The schema as it stands in the file."""
    return json.dumps(study_schema(), indent=2) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]) if len(sys.argv) > 1 else SCHEMA_FILE, schema_text())

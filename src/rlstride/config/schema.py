"""config/schema.json, by which editors complete and check studies; ``python -m rlstride.config.schema`` writes it."""

import json
import sys
from pathlib import Path
from typing import Any

from rlstride.atomic_files import write_text
from rlstride.config.study_file import StudyFile

SCHEMA_FILE = Path("config/schema.json")


def study_schema() -> dict[str, Any]:
    """The JSON schema of a study file, with every key's description and default."""
    schema = StudyFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A study of rlstride"}


def schema_text() -> str:
    """The schema as it stands in the file."""
    return json.dumps(study_schema(), indent=2) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]) if len(sys.argv) > 1 else SCHEMA_FILE, schema_text())

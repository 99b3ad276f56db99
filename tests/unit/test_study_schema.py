"""config/schema.json is what the pydantic models say, and accepts what they accept."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from rlstride.config.schema import schema_text, study_schema

CONFIG = Path(__file__).parents[2] / "config"
STUDIES = sorted([CONFIG / "config.yaml", *(CONFIG / "studies").glob("*.yaml")])


def test_the_schema_file_has_not_drifted_from_the_models() -> None:
    written = (CONFIG / "schema.json").read_text(encoding="utf-8")
    assert written == schema_text(), "run python -m rlstride.config.schema"


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_every_study_fits_the_schema_and_points_editors_to_it(study: Path) -> None:
    text = study.read_text(encoding="utf-8")
    jsonschema.validate(yaml.safe_load(text), study_schema())
    prefix = "# yaml-language-server: $schema="
    assert text.startswith(prefix)
    assert (study.parent / text.splitlines()[0].removeprefix(prefix)).resolve() == (CONFIG / "schema.json").resolve()


def test_the_schema_refuses_an_unknown_key_and_a_window_over_1() -> None:
    study = yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))
    for wrong in ({"windows": [0.4]}, {"extrapolation": {"windows": [1.4]}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(study | wrong, study_schema())


def test_every_key_has_a_description() -> None:
    schema = json.loads(schema_text())
    for name, section in [("study", schema), *schema["$defs"].items()]:
        for key, entry in section.get("properties", {}).items():
            # A key that holds a section is described by the section where both say the same.
            section_of_key = schema["$defs"].get(entry.get("$ref", "").removeprefix("#/$defs/"), {})
            assert entry.get("description") or section_of_key.get("description"), f"{name}.{key}"

"""What the sections of all YAML files are built from."""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Window = Annotated[float, Field(gt=0, le=1)]


def left_out_at(default: object) -> Callable[[object], bool]:
    """For ``exclude_if`` of a key that came later: at its default it stays out of dumps, and of hashes made of them.

    The hash of a section names folders: it does not change when an optional key is added.
    """
    return lambda value: value == default


class Strict(BaseModel):
    """A section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def digest(value: BaseModel | dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of a specification."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

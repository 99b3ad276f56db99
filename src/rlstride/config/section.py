"""What the sections of all YAML files are built from."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Window = Annotated[float, Field(gt=0, le=1)]


def is_left_out(value: object) -> bool:
    """Whether an optional part is not there: it then stays out of dumps, and so out of the hashes that name folders."""
    return value is None


class Strict(BaseModel):
    """A section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def digest(value: BaseModel | dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of a specification."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

"""Measurements of one tensor at a time, counted, and ended at a moment of one's choice."""

import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.scope import Weight


class Killed(BaseException):
    pass


@dataclass
class Measured:
    """The tensors that were measured, in order. With so many as ``most``, the next is the end."""

    names: list[str] = field(default_factory=list)
    most: float = math.inf


def watched(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Counts what a module's ``measure`` is called for."""
    found, measure = Measured(), vars(module)["measure"]

    def noted(reader: UpdateReader, weight: Weight, *rest: Any) -> Any:
        if len(found.names) == found.most:
            raise Killed
        found.names.append(weight.name)
        return measure(reader, weight, *rest)

    monkeypatch.setattr(module, "measure", noted)
    return found

"""Hyper-parameter sweeps: each combination of an algorithm's swept values is one more algorithm of the study."""

import itertools
from pathlib import Path
from typing import Any

from rlstride.config.algorithms import Algorithm
from rlstride.config.study_file import StudyFile
from rlstride.config.yaml_files import validate

_SHORT_NAMES = {"learning_rate": "lr", "epsilon": "eps", "warmup_steps": "warmup", "max_grad_norm": "clip"}


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


def _compact(value: Any) -> str:
    """A value as it stands in a name: 0.0003 as 3e-4."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:g}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:e}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"

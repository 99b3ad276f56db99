"""Train language models with RL, keep the trajectory of their weights, take it apart and predict where it goes.

What is meant to be imported stands here, and is loaded when it is first used: ``import rlstride`` itself loads neither
torch nor transformers.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rlstride.errors import RequestError, RlstrideError, WorkError

if TYPE_CHECKING:
    from rlstride.config.stride import Stride
    from rlstride.extrapolation.extrapolate_callback import ExtrapolateCallback
    from rlstride.stride.callback import StrideCallback
    from rlstride.stride.next_batch import NextBatch
    from rlstride.study.load import load_study
    from rlstride.trajectory.ingest import ingest
    from rlstride.trajectory.store import Trajectory

__all__ = [
    "ExtrapolateCallback",
    "NextBatch",
    "RequestError",
    "RlstrideError",
    "Stride",
    "StrideCallback",
    "Trajectory",
    "WorkError",
    "__version__",
    "ingest",
    "load_study",
]

_HOMES = {
    "ExtrapolateCallback": "rlstride.extrapolation.extrapolate_callback",
    "NextBatch": "rlstride.stride.next_batch",
    "Stride": "rlstride.config.stride",
    "StrideCallback": "rlstride.stride.callback",
    "Trajectory": "rlstride.trajectory.store",
    "ingest": "rlstride.trajectory.ingest",
    "load_study": "rlstride.study.load",
}

__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("rlstride")
    if name not in _HOMES:
        raise AttributeError(f"module 'rlstride' has no attribute {name!r}")
    from rlstride.extras import naming_the_extra

    with naming_the_extra():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

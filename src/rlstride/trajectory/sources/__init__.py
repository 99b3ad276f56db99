"""Where tensors come from: one at a time, by name, in the dtype they are stored in."""

from rlstride.trajectory.sources.hf import HFFolder
from rlstride.trajectory.sources.source import TensorSource

__all__ = ["HFFolder", "TensorSource"]

"""A small finished run whose movement is known because it was planted, not trained."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlstride.atomic_files import sha256
from rlstride.extrapolation.method import Method
from rlstride.extrapolation.next_predictor import NExt
from rlstride.extrapolation.validated import ValidatedNExt
from rlstride.trajectory.manifest import TrainingRecord
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter

DECODING = "t1.0"
STEPS = tuple(range(2, 21, 2))


@dataclass(frozen=True)
class SmallRun:
    """A cell's folder: cell/trajectory, cell/validation.parquet; its base lies beside the cell.

    Attributes:
        folder: the cell's folder.
        accuracies: planted validation accuracy by kept step.
    """

    folder: Path
    accuracies: dict[int, float]

    @property
    def path(self) -> Path:
        return self.folder / "trajectory"

    @property
    def evaluations(self) -> Path:
        return self.folder / "validation.parquet"

    @property
    def trajectory(self) -> Trajectory:
        return Trajectory(self.path)

    def restate(self) -> None:
        """Writes the manifest anew over the files as they are now: as if the trainer had left them so."""
        manifest = self.trajectory.manifest
        base, steps = self.path / manifest.base.path, manifest.steps
        digests = {each.step: {name: sha256(self.path / each.folder / name) for name in each.sha256} for each in steps}
        own = manifest.base.model_copy(update={"sha256": {name: sha256(base / name) for name in manifest.base.sha256}})
        records = [each.model_copy(update={"sha256": digests[each.step]}) for each in steps]
        manifest.model_copy(update={"base": own, "steps": records}).write(self.path)

    def copy_to(self, folder: Path) -> "SmallRun":
        """The same run in another place, to be damaged at will."""
        shutil.copytree(self.folder.parent, folder, ignore=shutil.ignore_patterns("ledger"))
        return SmallRun(folder / self.folder.name, self.accuracies)


def quick(method: Method) -> Method:
    """The method itself; NExt with networks of a few updates, where their number does not matter."""
    if isinstance(method, NExt):
        return replace(method, updates=20)
    return replace(method, method=replace(method.method, updates=20)) if isinstance(method, ValidatedNExt) else method


def plant_run(base: Path, cell: Path, *, noise: float = 0.15) -> SmallRun:
    """Writes a run without training: matrices move along one direction plus noise, accuracy rises with the movement.

    Every 2-D weight W gets g(t) * (u v^T + noise) with unit u, v, so the update is low-rank-ish but not of rank 1,
    unless ``noise`` is 0; all else, embeddings and norms included, moves too. g(t) = 1 - exp(-t / 8) and
    accuracy = 0.3 + 0.6 g(t).
    """
    start = {name: tensor.clone() for name, tensor in _load(base).state_dict().items()}
    moved = _load(base)
    generator = torch.Generator().manual_seed(1)
    direction = {name: _direction(tensor, noise, generator) for name, tensor in start.items()}
    writer = TrajectoryWriter(cell / "trajectory")
    accuracies = {}
    for step in STEPS:
        g = 1 - math.exp(-step / 8)
        wobble = {name: 0.01 * noise * torch.randn(tensor.shape, generator=generator) for name, tensor in start.items()}
        moved.load_state_dict({name: start[name] + g * (direction[name] + wobble[name]) for name in start})
        accuracies[step] = 0.3 + 0.6 * g
        writer.keep(step, moved)
    training = [TrainingRecord(step=t, reward=0.5, tokens=100, seconds=0.1) for t in range(1, STEPS[-1] + 1)]
    writer.finish("small", base, algorithm="planted", seed=0, config_hash="0", training=training)
    evaluations(accuracies).to_parquet(cell / "validation.parquet", index=False)
    return SmallRun(cell, accuracies)


def evaluations(accuracies: dict[int, float]) -> pd.DataFrame:
    """The columns of validation.parquet that methods read; the base has a row of its own variant."""
    rows = [{"variant": "base", "step": 0, "accuracy": 0.3}]
    rows += [{"variant": "checkpoint", "step": step, "accuracy": value} for step, value in accuracies.items()]
    frame = pd.DataFrame(rows)
    frame["split"], frame["decoding"] = "validation", DECODING
    other = frame.assign(decoding="greedy", accuracy=0.0)  # another decoding must not be read by mistake
    return pd.concat([frame, other], ignore_index=True)


def _load(base: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model


def _direction(tensor: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim != 2:
        return 0.01 * normal
    u = torch.randn(tensor.shape[0], generator=generator)
    v = torch.randn(tensor.shape[1], generator=generator)
    return torch.outer(u / u.norm(), v / v.norm()) + noise * normal / math.sqrt(max(tensor.shape))

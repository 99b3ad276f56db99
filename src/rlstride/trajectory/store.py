"""A trajectory as its readers see it: the base, the kept steps, and windows that refuse to look ahead."""

import hashlib
from functools import cached_property
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.study.plan import window_limit
from rlstride.trajectory.files import sha256
from rlstride.trajectory.layout import InLayout, Layout, read_layout
from rlstride.trajectory.manifest import Manifest, StepRecord, read_manifest
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.recognise import Checkpoint, Kind


class Trajectory:
    """The base (step 0) and the kept steps of one run, read lazily.

    Attributes:
        folder: where manifest.json lies.
        manifest: the whole manifest.
        steps: the kept steps that may be read, ascending; the base (0) is not among them.
        full_last_step: the last step of the whole run, even where only a window of it may be read.
    """

    def __init__(self, folder: str | Path, *, limit: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        records = sorted(self.manifest.steps, key=lambda record: record.step)
        if not records:
            raise RequestError(f"{self.folder}: the manifest lists no kept step")
        self.full_last_step = records[-1].step
        self._limit = self.full_last_step if limit is None else limit
        self._records = {record.step: record for record in records if record.step <= self._limit}
        self.steps = list(self._records)

    @property
    def base_folder(self) -> Path:
        """The base's Hugging Face folder."""
        return (self.folder / self.manifest.base.path).resolve()

    def window(self, share: float) -> "Trajectory":
        """The first part: kept steps t with t <= share * (last step). Later steps cannot be read through it.

        Raises:
            RequestError: ``share`` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise RequestError(f"a window is a share of the steps in (0, 1], not {share:g}")
        return Trajectory(self.folder, limit=window_limit(share, self.full_last_step))

    def seed_for(self, *parts: str | int) -> int:
        """A seed, below 2**48, from the run and from what of it is drawn: the same parts give the same draws."""
        run = self.manifest
        text = "/".join(map(str, (run.base.name, run.algorithm, run.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    def record(self, step: int) -> StepRecord:
        """The manifest's entry of a kept step.

        Raises:
            RequestError: the step was not kept, or lies beyond this window.
        """
        if step > self._limit < self.full_last_step:
            raise RequestError(f"{self.folder}: step {step} lies beyond the window, which ends at step {self._limit}")
        if step not in self._records:
            raise RequestError(f"{self.folder}: step {step} was not kept; kept: {', '.join(map(str, self.steps))}")
        return self._records[step]

    def model_folder(self, step: int) -> Path:
        """The folder of a kept step's weights; 0 is the base. Kinds other than ``hf`` are no Hugging Face folders."""
        return self.base_folder if step == 0 else self.folder / self.record(step).folder

    def checkpoint(self, step: int) -> Checkpoint:
        """Where a kept step's weights are, and how they are stored; 0 is the base.

        Raises:
            RequestError: a later rlstride knows how they are stored, or :meth:`record` refuses the step.
        """
        kind = Kind.HF.value if step == 0 else self.record(step).kind
        if kind not in tuple(Kind):
            raise RequestError(f"{self.folder}: step {step}: this rlstride reads no checkpoints of the kind {kind!r}")
        return Checkpoint(Kind(kind), self.model_folder(step))

    def files(self, step: int) -> list[Path]:
        """The files that hold a kept step's weights, as the manifest lists them; 0 is the base."""
        listed = self.manifest.base.sha256 if step == 0 else self.record(step).sha256
        return [self.model_folder(step) / file for file in listed]

    def digest(self, step: int) -> str:
        """Of a kept step's files as they are now, not as the manifest has them; 0 is the base.

        Raises:
            RequestError: a file is missing.
        """
        under, files = self.files(0), self.files(step)
        absent = next((file for file in [*under, *files] if not file.is_file()), None)
        if absent:
            raise RequestError(f"{absent}: in the trajectory's manifest, but missing")
        # An adapter's weights are its base's too, whose files are too large to read for every step.
        return "".join([*map(sha256, files), *(f"{file.name} {file.stat().st_mtime_ns}" for file in under)])

    def source(self, step: int) -> InLayout:
        """The tensors of a kept step, fused matrices apart as the base's config says; 0 is the base.

        Raises:
            RequestError: the step cannot be read here, or its files are damaged.
        """
        base, layout = self._base
        return InLayout(self.checkpoint(step).open(base), layout)

    @cached_property
    def _base(self) -> tuple[HFFolder, Layout]:
        """The base's files and layout: read once, whatever the number of steps."""
        return HFFolder(self.base_folder), read_layout(self.base_folder)

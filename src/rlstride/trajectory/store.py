"""A trajectory as its readers see it: the base, the kept steps, and windows that refuse to look ahead."""

import hashlib
from functools import cached_property
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.study.plan import window_limit
from rlstride.trajectory.layout import InLayout
from rlstride.trajectory.manifest import Manifest, StepRecord, read_manifest
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources.formats import FORMATS, HF
from rlstride.trajectory.sources.recognise import Checkpoint
from rlstride.trajectory.verified import VerifiedFiles


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
        kind = HF.name if step == 0 else self.record(step).kind
        if kind not in FORMATS:
            raise RequestError(f"{self.folder}: step {step}: this rlstride reads no checkpoints of the kind {kind!r}")
        return Checkpoint(FORMATS[kind], self.model_folder(step))

    def files(self, step: int) -> list[Path]:
        """The files that hold a kept step's weights, as the manifest lists them; 0 is the base."""
        listed = self.manifest.base.sha256 if step == 0 else self.record(step).sha256
        return [self.model_folder(step) / file for file in listed]

    def digests(self, step: int) -> dict[str, str]:
        """The SHA-256 of each file of a kept step, by its name; 0 is the base. Every file is checked to have it still.

        Raises:
            RequestError: a file is missing, or is no longer what the manifest was written over.
        """
        listed = self.manifest.base.sha256 if step == 0 else self.record(step).sha256
        self._verified.check({self.model_folder(step) / file: digest for file, digest in listed.items()})
        return dict(listed)

    def digest(self, step: int) -> str:
        """Of all that decides a kept step's weights, its base's files too. Errors are those of :meth:`digests`."""
        return " ".join([*self.digests(0).values(), *(self.digests(step).values() if step else ())])

    def source(self, step: int) -> InLayout:
        """The tensors of a kept step, fused matrices apart as the base's config says; 0 is the base.

        Raises:
            RequestError: the step cannot be read here, or its files are damaged or changed.
        """
        self.digests(0)
        if step == 0:
            return self.base.source
        checkpoint = self.checkpoint(step)
        self.digests(step)
        return self.base.step(checkpoint, self.record(step).model_key)

    @cached_property
    def base(self) -> ModelFolder:
        """The base's folder: read once, whatever the number of steps."""
        return ModelFolder(self.base_folder, cache=self.folder)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer of all models of this run lies: the run's own where it differs from the base's."""
        own = self.manifest.tokenizer
        return self.base_folder if own is None else (self.folder / own).resolve()

    @cached_property
    def _verified(self) -> VerifiedFiles:
        return VerifiedFiles(self.folder)

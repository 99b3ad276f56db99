"""Writes a trajectory so that a kill at any moment loses at most the step in hand."""

import os
from pathlib import Path

from peft import PeftModel
from pydantic import ValidationError
from transformers import PreTrainedModel

from rlstride.atomic_files import atomic_folder, digests_of
from rlstride.study.plan import step_folder
from rlstride.trajectory.adapted import Adapted, base_is_moved
from rlstride.trajectory.architecture import read_architecture
from rlstride.trajectory.manifest import BaseRecord, Manifest, Stalled, StepRecord, TrainingRecord, library_versions
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources.formats import ADAPTER, HF
from rlstride.trajectory.sources.recognise import Checkpoint
from rlstride.trajectory.verified import note_whole

STEP_RECORD = "step.json"


class TrajectoryWriter:
    """Keeps checkpoints of one run. Each step's folder appears whole or not at all; the manifest comes last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, step: int, model: PreTrainedModel | PeftModel) -> StepRecord:
        """Writes the model's weights as a kept step, in place of an earlier attempt at the same step.

        Of a model with an adapter, only the adapter is written: it is read over the trajectory's base; where that no
        longer is the model's own (:func:`mark_base_as_moved`), its whole weights are.
        """
        name = step_folder(step)
        with atomic_folder(self.folder / name) as partial:
            kind, trained = HF, next(model.parameters())
            if isinstance(model, PeftModel) and base_is_moved(model):
                Adapted(model).save(partial, whole=True)
            elif isinstance(model, PeftModel):
                kind, trained = ADAPTER, next(weight for weight in model.parameters() if weight.requires_grad)
                model.save_pretrained(partial, save_embedding_layers=False)
                (partial / "README.md").unlink(missing_ok=True)  # PEFT's card, with nothing filled in
            else:
                model.save_pretrained(partial)
            dtype = str(trained.dtype).removeprefix("torch.")
            digests = digests_of(partial, Checkpoint(kind, partial).files())
            record = StepRecord(step=step, folder=name, kind=kind.name, sha256=digests, dtype=dtype)
            (partial / STEP_RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        return record

    def kept(self) -> list[StepRecord]:
        """The steps kept so far, ascending; a folder without a whole record is passed over."""
        records = []
        for path in sorted(self.folder.glob(f"step_*/{STEP_RECORD}")):
            try:
                records.append(StepRecord.model_validate_json(path.read_text()))
            except ValidationError:
                continue
        return sorted(records, key=lambda record: record.step)

    def finish(
        self,
        base_name: str,
        base_folder: Path,
        *,
        algorithm: str,
        seed: int,
        config_hash: str,
        training: list[TrainingRecord],
        stalled: Stalled | None = None,
    ) -> Manifest:
        """Writes the manifest over every kept step: the trajectory is whole from here on.

        Args:
            training: every optimiser step, from which kept steps get their reward, tokens and seconds.
            stalled: why it learnt nothing, where it did not.
        """
        base = BaseRecord(
            name=base_name,
            path=os.path.relpath(base_folder.resolve(), self.folder.resolve()),
            sha256=digests_of(base_folder, ModelFolder(base_folder).files()),
        )
        manifest = Manifest(
            base=base,
            algorithm=algorithm,
            seed=seed,
            config_hash=config_hash,
            steps=[_with_costs(record, training) for record in self.kept()],
            training=training,
            stalled=stalled,
            libraries=library_versions(),
        )
        manifest.write(self.folder)
        note_whole(self.folder, manifest)
        read_architecture(base_folder, cache=self.folder)
        return manifest


def _with_costs(record: StepRecord, training: list[TrainingRecord]) -> StepRecord:
    """The record with its step's reward, and with the tokens and seconds from step 0 up to it."""
    until = [entry for entry in training if entry.step <= record.step]
    if not until or until[-1].step != record.step:
        return record
    tokens, seconds = sum(entry.tokens for entry in until), sum(entry.seconds for entry in until)
    return record.model_copy(update={"reward": until[-1].reward, "tokens": tokens, "seconds": round(seconds, 4)})

"""Runs one cell's RL from its base, or from where an interrupted run stopped, to a finished trajectory."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.errors import RequestError
from rlstride.study.load import Cell, Study, digest
from rlstride.study.paths import base_folder
from rlstride.study.plan import kept_steps
from rlstride.tasks import build_task
from rlstride.tracking.ledger import ledger_entry
from rlstride.training.harvest import HarvestCallback, last_complete_checkpoint, step_of
from rlstride.training.registry import TRAINERS
from rlstride.training.run import Run
from rlstride.trajectory.files import write_text
from rlstride.trajectory.manifest import Manifest, TrainingRecord, read_manifest
from rlstride.trajectory.writer import TrajectoryWriter

_LINES_PER_RUN = 12


def train_cell(study: Study, cell: Cell, out: Path, state: Path) -> Manifest:
    """Trains a cell and keeps its trajectory in ``out``. A finished trajectory of the same settings is left as it is.

    Args:
        state: the trainer's own checkpoints. A rerun with the same settings goes on from the last complete one; they
            are removed once the trajectory is whole.

    Raises:
        RequestError: the base is missing, or ``out`` holds a finished trajectory of other settings.
    """
    base = base_folder(study, cell.model)
    if not (base / "config.json").is_file():
        raise RequestError(
            f"{base}: the base of {cell.model} is not there; "
            f"make it with rlstride pretrain --model {cell.model} --out {base}"
        )
    config_hash = digest(cell_settings(study, cell))
    if (finished := _finished(out, config_hash)) is not None:
        print(f"{cell}: {out} is finished already", flush=True)
        return finished
    run = Run(
        base_folder=base,
        state_folder=state,
        task=build_task(study.spec.task, study.task),
        training=study.spec.training,
        algorithm=study.algorithm(cell),
        seed=cell.seed,
        device=study.spec.device,
    )
    _quieten_libraries()
    transformers.set_seed(cell.seed)
    with ledger_entry(
        out.parent / "ledger", "train", cell=str(cell), config_hash=config_hash, device=run.device
    ) as found:
        checkpoint = _checkpoint_to_resume(out, state, config_hash, kept_steps(run.training))
        found["resumed_from"] = step_of(checkpoint) if checkpoint else 0
        harvest = HarvestCallback(out, run.training.keep_every)
        trainer = TRAINERS[run.algorithm.trainer](run)
        trainer.add_callback(harvest)
        trainer.add_callback(_LogLines(str(cell)))
        trainer.remove_callback(transformers.PrinterCallback)
        # TRL writes a model card with every checkpoint; these checkpoints are nobody's model.
        trainer.create_model_card = lambda *args, **kwargs: None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        records = training_records(trainer.state.log_history, run.batch_size)
        found |= {
            "steps": trainer.state.global_step,
            "step_seconds": round(sum(record.seconds for record in records) / len(records), 4),
            "harvest_seconds": round(harvest.harvest_seconds, 4),
            "completion_tokens": sum(record.tokens for record in records),
        }
        manifest = harvest.writer.finish(
            cell.model, base, algorithm=cell.algorithm, seed=cell.seed, config_hash=config_hash, training=records
        )
    shutil.rmtree(state)
    return manifest


def cell_settings(study: Study, cell: Cell) -> dict[str, Any]:
    """All that a cell's weights depend on, besides the versions of the libraries."""
    return {
        "model": study.models[cell.model].model_dump(mode="json"),
        "task": study.task.model_dump(mode="json"),
        "training": study.spec.training.model_dump(mode="json"),
        "algorithm": study.algorithm(cell).model_dump(mode="json"),
        "seed": cell.seed,
    }


def training_records(history: list[dict[str, Any]], completions: int) -> list[TrainingRecord]:
    """Reward, completion tokens and seconds of every optimiser step, from the trainer's log history."""
    return [
        TrainingRecord(
            step=entry["step"],
            reward=entry["reward"],
            tokens=round(entry["completions/mean_length"] * completions),
            seconds=entry["seconds"],
        )
        for entry in history
        if "reward" in entry
    ]


def _finished(out: Path, config_hash: str) -> Manifest | None:
    """The manifest of a finished run of the same settings, or None where no finished run is there."""
    if not (out / "manifest.json").exists():
        return None
    manifest = read_manifest(out)
    if manifest.config_hash != config_hash:
        raise RequestError(f"{out}: a finished trajectory of other settings is here; remove it, or name another folder")
    return manifest


def _checkpoint_to_resume(out: Path, state: Path, config_hash: str, expected: list[int]) -> Path | None:
    """The checkpoint to go on from; where there is none, clears what an earlier attempt left, so that nothing is mixed.

    Args:
        expected: the steps that the run keeps; those up to the checkpoint must be in ``out`` already.
    """
    stamp = state / "config_hash"
    checkpoint = last_complete_checkpoint(state)
    if checkpoint is not None:
        kept = {record.step for record in TrajectoryWriter(out).kept()}
        same_settings = stamp.is_file() and stamp.read_text() == config_hash
        if same_settings and kept >= {step for step in expected if step <= step_of(checkpoint)}:
            print(f"{out}: resumes from step {step_of(checkpoint)}", flush=True)
            return checkpoint
        print(f"{out}: an unfinished run of other settings was here; starts anew", flush=True)
    shutil.rmtree(state, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    write_text(stamp, config_hash)
    return None


def _quieten_libraries() -> None:
    """Leaves progress bars for a fraction of a second, and a warning of transformers about itself, out of the logs."""
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)


class _LogLines(TrainerCallback):
    """A dozen plain lines over a run, whatever its length."""

    def __init__(self, cell: str) -> None:
        self.cell = cell

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        entry = state.log_history[-1]
        every = max(1, state.max_steps // _LINES_PER_RUN)
        if "reward" in entry and (state.global_step % every == 0 or state.global_step == state.max_steps):
            print(
                f"{self.cell}: step {state.global_step} of {state.max_steps}, "
                f"reward {entry['reward']:.3f}, {entry['seconds']:.2f} s a step",
                flush=True,
            )

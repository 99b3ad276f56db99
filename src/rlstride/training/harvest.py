"""The callback that keeps a run's trajectory, for any trainer built on transformers' Trainer."""

import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.atomic_files import write_text
from rlstride.checkpoints import checkpoint_folder
from rlstride.trajectory.writer import TrajectoryWriter

COMPLETE_MARKER = "complete"


class HarvestCallback(TrainerCallback):
    """Writes the weights of every ``keep_every``-th step, and of the last one, into a trajectory store.

    It also times each step (the key ``seconds`` in the trainer's log history, without the time spent on keeping
    weights), and marks each of the trainer's own checkpoints as complete once all of its files are written, so that a
    half-written one is never resumed from. Weights are kept before the trainer saves its checkpoint: a resumed run may
    write a step again, and never misses one.

    Args:
        folder: the trajectory's.
        keep_every: steps between two kept ones.
        updates_per_step: optimiser updates (the trainer's own global steps) that make one step; the trainer must log
            once a step, and save at the end of one.
    """

    def __init__(self, folder: Path, keep_every: int, updates_per_step: int = 1) -> None:
        self.writer = TrajectoryWriter(folder)
        self.keep_every = keep_every
        self.updates_per_step = updates_per_step
        self.harvest_seconds = 0.0
        self._began = time.perf_counter()
        self._step_seconds = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        ended = time.perf_counter()
        self._step_seconds += ended - self._began
        step, updates_left = divmod(state.global_step, self.updates_per_step)
        is_due = step % self.keep_every == 0 or state.global_step >= state.max_steps
        if is_due and not updates_left and state.is_world_process_zero:
            self.writer.keep(step, model)
            self.harvest_seconds += time.perf_counter() - ended

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The history is saved with the trainer's checkpoints: the times of steps before an interruption are not lost.
        if "loss" in state.log_history[-1]:
            state.log_history[-1]["seconds"] = self._step_seconds
            self._step_seconds = 0.0

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # every process saves the state of its random numbers
        if state.is_world_process_zero:
            write_text(checkpoint_folder(args, state) / COMPLETE_MARKER, "")


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The trainer's latest checkpoint whose files are all there, or None."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step at which one of the trainer's checkpoints was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))

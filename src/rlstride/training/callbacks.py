"""A run's callbacks, for any trainer built on transformers' Trainer.

They keep its trajectory, tell how it is going, and end it early and in order.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.atomic_files import write_text
from rlstride.errors import WorkError
from rlstride.processes import in_any_process
from rlstride.trainers import checkpoint_folder
from rlstride.training.lease import Lease
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


_LINES_PER_RUN = 12


class LogLines(TrainerCallback):
    """A dozen plain lines over a run, whatever its length."""

    def __init__(self, cell: str, updates_per_step: int) -> None:
        self.cell = cell
        self.updates_per_step = updates_per_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        entry = state.log_history[-1]
        if "loss" not in entry or not state.is_world_process_zero:
            return
        step, steps = state.global_step // self.updates_per_step, state.max_steps // self.updates_per_step
        if step % max(1, steps // _LINES_PER_RUN) == 0 or step == steps:
            reward = entry.get("rewards/verified/mean")
            learned = f"loss {entry['loss']:.3f}" if reward is None else f"reward {reward:.3f}"
            print(f"{self.cell}: step {step} of {steps}, {learned}, {entry['seconds']:.2f} s a step", flush=True)


class StopOnSignal(TrainerCallback):
    """On SIGTERM, which Slurm sends before a time limit, ends the step in hand, saves a checkpoint and stops.

    The launcher may pass the signal on to some of a run's processes only, or to each at another step: all of them stop
    after the same one.
    """

    def __init__(self, updates_per_step: int) -> None:
        self.updates_per_step = updates_per_step
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals can be caught in the main thread only; elsewhere SIGTERM ends the process as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_signal(self, number: int, frame: object) -> None:
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.updates_per_step or state.global_step >= state.max_steps:
            return
        if in_any_process(self.asked):
            control.should_save = True
            control.should_training_stop = True


class KeepLease(TrainerCallback):
    """Ends a run that has lost its lease, before it writes anything more; in all of its processes.

    Args:
        held: the lease, in the main process; None in the others.
        updates_per_step: the trainer's global steps in a step of RL.
    """

    def __init__(self, held: Lease | None, updates_per_step: int) -> None:
        self._held = held
        self._updates_per_step = updates_per_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._updates_per_step:
            return
        if in_any_process(self._held is not None and not self._held.is_ours()):
            raise WorkError("another run has taken this one's lease, as it was thought dead; it stops")

"""Callbacks that end a run early and in order, for any trainer built on transformers' Trainer."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.errors import WorkError
from rlstride.processes import in_any_process
from rlstride.training.lease import Lease


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

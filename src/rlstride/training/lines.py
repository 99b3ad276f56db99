"""The callback that tells how a run is going, for any trainer built on transformers' Trainer."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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

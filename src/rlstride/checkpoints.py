"""Where transformers' Trainer keeps its own checkpoints: what callbacks write beside them, and resume from."""

from pathlib import Path

from transformers import TrainerState, TrainingArguments


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the trainer's checkpoint at the step that it is at."""
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"

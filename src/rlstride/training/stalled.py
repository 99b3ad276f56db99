"""Runs that learn nothing: every rollout is rewarded alike, or no weight has moved."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.config.algorithms import Optimisation
from rlstride.config.training import Training
from rlstride.errors import WorkError
from rlstride.processes import in_any_process
from rlstride.training.precision import base_as_trained
from rlstride.training.run import Run
from rlstride.trajectory.manifest import Stalled, StepRecord
from rlstride.trajectory.model_folder import ModelFolder, first_difference
from rlstride.trajectory.sources.formats import FORMATS
from rlstride.trajectory.sources.recognise import Checkpoint
from rlstride.trajectory.writer import TrajectoryWriter

_BY_LENGTH = "rewards/soft_overlong_punishment_reward/"  # punishes lengths, and says nothing of answers


def steps_to_watch(training: Training) -> int:
    """First steps of a run whose rewards are looked at."""
    default: int = Training.model_fields["reward_patience"].default
    return min(training.reward_patience or default, training.steps)


def may_stall(training: Training, algorithm: Optimisation) -> bool:
    """Whether a run that learns nothing goes on all the same: a control whose rate is 0, or as the study says."""
    return algorithm.learning_rate == 0 or training.reward_patience is None


def constant_reward(history: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """What all rollouts of a run's first steps were rewarded with, where that is one and the same; else None.

    None too of a run that has not come so far, and of one without rewards. A punishment of length does not count.

    Args:
        history: what a trainer logged; one entry with a loss for each step.
        steps: how many of the first.
    """
    first = [entry for entry in history if "loss" in entry][:steps]
    if len(first) < steps:
        return None
    means = [key for key in first[0] if key.startswith("rewards/") and key.endswith("/mean")]
    means = [key for key in means if not key.startswith(_BY_LENGTH)]
    if not means:
        return None
    for key in means:
        at_first = first[0][key]
        for entry in first:
            spread = entry.get(f"{key.removesuffix('mean')}std") or 0.0
            if spread > 1e-6 or not _equal(entry.get(key), at_first):
                return None
    return float(first[0][means[0]] or 0.0)


class StopWithoutReward(TrainerCallback):
    """Ends a run after its first steps if all of their rollouts were rewarded alike; it saves a checkpoint.

    Args:
        cell: the run's, for what is said where a resumed run has ended so before.
        steps: that many first ones.
        updates_per_step: the trainer's global steps in a step of RL.
    """

    def __init__(self, cell: str, steps: int, updates_per_step: int) -> None:
        self.cell, self.steps, self.updates_per_step = cell, steps, updates_per_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step < state.max_steps and constant_reward(state.log_history, self.steps) is not None:
            raise WorkError(f"{self.cell}: {sentence('constant reward', state.log_history, self.steps)}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step != self.steps * self.updates_per_step or "loss" not in state.log_history[-1]:
            return
        if in_any_process(constant_reward(state.log_history, self.steps) is not None):
            control.should_save = True
            control.should_training_stop = True


def why_stalled(
    run: Run[Any], history: Sequence[Mapping[str, Any]], writer: TrajectoryWriter, *, ended: bool
) -> Stalled | None:
    """Why a run learnt nothing; None where it did, or was not meant to.

    Args:
        run: the cell's.
        history: what its trainer logged.
        writer: which has kept its steps.
        ended: whether it has made its last step.
    """
    if run.algorithm.learning_rate == 0:
        return None
    if constant_reward(history, steps_to_watch(run.training)) is not None:
        return "constant reward"
    kept = writer.kept()
    unmoved = ended and kept and _is_base(base_as_trained(run, writer.folder), writer.folder, kept[-1])
    return "unmoved" if unmoved else None


def sentence(stalled: Stalled, history: Sequence[Mapping[str, Any]], steps: int) -> str:
    """What is said of such a run.

    Args:
        stalled: what is wrong.
        history: what its trainer logged.
        steps: that its rewards were looked at for.
    """
    advice = "look at prompts, completions and rewards with rlstride check --study FILE --sample 8"
    leave = "with training: reward_patience: null such a run goes on"
    if stalled == "unmoved":
        return f"every weight of the last step is its base's, to the bit: {advice}; {leave}"
    reward = constant_reward(history, steps) or 0.0
    return (
        f"every rollout of the first {steps} steps had the reward {reward:g}, which teaches nothing: {advice}; {leave}"
    )


def _is_base(base: Path, folder: Path, last: StepRecord) -> bool:
    model = ModelFolder(base)
    step = model.step(Checkpoint(FORMATS[last.kind], folder / last.folder), last.model_key)
    return first_difference(step, model.source) is None


def _equal(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isclose(one, other, abs_tol=1e-6))

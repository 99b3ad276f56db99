"""A study's jumps in training: a run that stops at a window with what a method predicts, or goes on from there."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from rlstride.errors import RequestError
from rlstride.extrapolation.extrapolate_callback import ExtrapolateCallback
from rlstride.extrapolation.registry import method_named
from rlstride.study.plan import PlannedJump, planned_jumps
from rlstride.study.study import Cell, Study
from rlstride.training.run import Run

if TYPE_CHECKING:
    from rlstride.evaluation.lm import CountingHFLM

_WINDOW = "window"  # below the trainer's own checkpoints: the kept steps that the method reads


@dataclass(frozen=True)
class EarlyStop:
    """How a run is stopped early.

    Attributes:
        callback: takes the jump.
        last_update: the trainer's global step at which the run ends.
    """

    callback: ExtrapolateCallback
    last_update: int

    def resumes_at_its_end(self, trainer: Trainer, checkpoint: Path) -> bool:
        """Whether a checkpoint was saved after the run's last step, so that only the manifest is missing.

        The trainer's history and the callback's report are taken up then.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < self.last_update:
            return False
        trainer.state = state
        self.callback.restore(checkpoint)
        return True


def planned_jump(study: Study, cell: Cell, name: str) -> PlannedJump:
    """A jump of a study, by its name.

    Raises:
        RequestError: the study has none of that name, or none beside this cell.
    """
    jumps = planned_jumps(study.spec)
    if name not in jumps:
        known = ", ".join(jumps) or "none"
        raise RequestError(f"{study.path}: extrapolation: jumps: there is no {name!r}; the study has {known}")
    if cell not in study.jumping_cells:
        raise RequestError(f"{study.path}: {cell}: jumps are run beside RL that does not stride, not beside this cell")
    return jumps[name]


def jump_settings(study: Study, planned: PlannedJump) -> dict[str, Any]:
    """What the weights of an early stop depend on besides its cell's settings."""
    evaluation = study.spec.evaluation
    return {
        "jump": planned.jump.model_dump(mode="json"),
        "target_accuracy": study.spec.extrapolation.target_accuracy,
        "headline": evaluation.headline,
        "decoding": evaluation.decodings[evaluation.headline].model_dump(mode="json"),
        "validation_problems": evaluation.validation_problems,
    }


def early_stop(study: Study, cell: Cell, planned: PlannedJump, run: Run[Any]) -> EarlyStop:
    """How a run takes a jump of its study.

    Args:
        study: says what AlphaRL and its like extrapolate to, and what they are told on the way.
        cell: of which the run is a shorter one.
        planned: the jump.
        run: the cell's.
    """
    updates, method = run.algorithm.updates_per_step, method_named(planned.jump.method)
    callback = ExtrapolateCallback(
        planned.jump.method,
        run.state_folder / _WINDOW,
        planned.window_step,
        keep_every=run.training.keep_every,
        validate=StudyValidation(study, cell, run.base_folder) if method.spec.uses_accuracy else None,
        then="stop" if planned.jump.until is None else "go_on",
        target_accuracy=study.spec.extrapolation.target_accuracy,
        updates_per_step=updates,
    )
    return EarlyStop(callback, planned.last_step * updates)


class StudyValidation:
    """Scores the policy in training as the pipeline scores its kept steps: same problems, decoding, random numbers.

    The run's own random numbers are left as they were: what it trains until the window is what it would have trained
    without a look.
    """

    def __init__(self, study: Study, cell: Cell, base_folder: Path) -> None:
        from rlstride.evaluation.benchmark import StudyBenchmark  # lm-eval takes seconds to import

        self._evaluation, self._cell = study.spec.evaluation, cell
        self._benchmark = StudyBenchmark(study, "validation")
        self._tokenizer = AutoTokenizer.from_pretrained(base_folder)
        self._lm: CountingHFLM | None = None

    def __call__(self, model: PreTrainedModel, draw: int) -> list[float]:
        """The scores of the validation problems, (problems,), after the step ``draw``."""
        from rlstride.evaluation.benchmark import sampling_seed
        from rlstride.evaluation.lm import CountingHFLM, quiet_lm_eval

        headline, was_training = self._evaluation.headline, model.training
        seed = sampling_seed(self._cell.model, self._cell.seed, "checkpoint", draw, headline, "validation")
        try:
            if self._lm is None:
                with quiet_lm_eval():
                    self._lm = CountingHFLM(model, self._tokenizer)
            model.eval()
            with torch.random.fork_rng():
                decoding = self._evaluation.decodings[headline]
                return self._benchmark.score(self._lm, self._cell.model, decoding, seed).scores
        finally:
            model.train(was_training)


class StopAfter(TrainerCallback):
    """Ends a run after some of its updates, with the data and the rates of the whole run until there."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= self.updates:
            control.should_training_stop = True

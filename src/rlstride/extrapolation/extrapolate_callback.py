"""Extrapolation inside of a run: train for a window, put in what a method predicts for later, then stop or train on.

    from rlstride import ExtrapolateCallback

    trainer.add_callback(ExtrapolateCallback("alpharl", Path("run/window"), window=24, validate=validate))

Stopping there is the plug-in that AlphaRL's paper promises (arXiv 2510.00553); training on from there is what NExt does
(arXiv 2604.11446). Nothing is verified: the method's word is taken. StrideCallback is the one that looks.
"""

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.atomic_files import atomic_folder, write_text
from rlstride.errors import RequestError
from rlstride.extrapolation.method import Target
from rlstride.extrapolation.predict import predicted_tensors
from rlstride.extrapolation.registry import method_named
from rlstride.processes import as_in_main_process, failing_together, from_main_process
from rlstride.trainers import Validate, checkpoint_folder, clear_moments
from rlstride.trajectory.adapted import Adapted, mark_base_as_moved
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter

_BASE, _MOVED_BASE = "base", "moved_base"
_FACTS = "extrapolate.json"  # in the trainer's checkpoints


class ExtrapolateCallback(TrainerCallback):
    """Trains for a window only, keeps its trajectory, and goes where a method points.

    For full weights or an adapter of PEFT's, in one process or several with DDP, where the main one predicts.

    What is predicted is a whole model, which an adapter cannot express: after the jump the adapter is as it was, and
    its frozen base is moved so that both together are the prediction. The moved base lies in ``folder/moved_base``.
    Adapters that are saved from then on name it as their base, and a resumed run takes it from there; trajectories keep
    whole weights. A KL divergence to the base is one to the moved base from then on.

    Args:
        method: a name in rlstride.extrapolation.registry that chooses nothing on validation.
        folder: where the base and the window's kept steps are written; a trajectory that every verb reads. All
            processes see it.
        window: steps after which the method is asked.
        keep_every: steps between two kept ones.
        validate: scores held-out problems, for methods that need the accuracy of the kept steps; called with the step
            as its draw, by all processes, and the main one's scores count.
        then: ``stop`` ends the run, ``go_on`` trains on from the predicted weights, Adam's averages cleared.
        target_accuracy: that AlphaRL extrapolates to.
        target_step: that other methods extrapolate to; the run's last step, if left out.
        updates_per_step: the trainer's global steps that make one step.

    Attributes:
        report: once the method was asked: method, window, kept steps, the seconds of training, validation and
            extrapolation, the steps that were left and the ``saved_seconds`` of not training them, costs deducted.

    Raises:
        RequestError: the method cannot work inside of a run or needs validation that is not there; when training
            begins: the model is sharded, its adapter's base is in a dtype narrower than float32, or more is trained
            than an adapter; the folder holds kept steps of another run; a checkpoint to resume from was saved without
            the callback, or by a run that had ended at its window.
    """

    def __init__(
        self,
        method: str,
        folder: Path,
        window: int,
        *,
        keep_every: int = 2,
        validate: Validate | None = None,
        then: Literal["stop", "go_on"] = "stop",
        target_accuracy: float = 1.0,
        target_step: int | None = None,
        updates_per_step: int = 1,
    ) -> None:
        self.method = method_named(method)
        if self.method.spec.uses_scores or self.method.spec.oracle:
            raise RequestError(f"{method}: inside of a run there is nothing to choose its target by")
        if self.method.spec.uses_accuracy and validate is None:
            raise RequestError(f"{method}: needs the accuracy of the kept steps; give a validate function")
        self.report: dict[str, Any] = {}
        self._writer = TrajectoryWriter(folder)
        self._window, self._keep_every, self._then = window, keep_every, then
        self._validate, self._target_accuracy, self._target_step = validate, target_accuracy, target_step
        self._updates_per_step = updates_per_step
        self._accuracies: dict[int, float] = {}
        self._seconds = {"training": 0.0, "validation": 0.0, "extrapolation": 0.0}
        self._began = 0.0
        self._tokenizer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, self._tokenizer = kwargs["model"], kwargs.get("processing_class")
        with failing_together():
            _require_extrapolable(model)
            if state.global_step:
                self._resume(checkpoint_folder(args, state), model)
            elif state.is_world_process_zero:
                self._begin_anew(model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._count("training")
        step, updates_left = divmod(state.global_step, self._updates_per_step)
        if updates_left or step > self._window:
            return
        model = kwargs["model"]
        if step % self._keep_every == 0 or step == self._window:
            if state.is_world_process_zero:
                self._writer.keep(step, model)
            self._began = time.perf_counter()  # keeping weights is no cost of the method's
            if self.method.spec.uses_accuracy and self._validate is not None:
                self._accuracies[step] = statistics.fmean(self._validate(model, step))
            self._count("validation")
        if step == self._window:
            self._jump(args, state, model)
            if self._then == "stop":
                control.should_training_stop = True
            else:
                clear_moments(kwargs["optimizer"], list(model.parameters()))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            facts = {"accuracies": self._accuracies, "seconds": self._seconds, "report": self.report}
            write_text(checkpoint_folder(args, state) / _FACTS, json.dumps(facts))

    def _begin_anew(self, model: Any) -> None:
        if self._writer.kept():
            raise RequestError(f"{self._writer.folder}: holds kept steps of another run; name a new folder")
        self._save_base(_BASE, model)

    def _save_base(self, name: str, model: Any) -> None:
        with atomic_folder(self._writer.folder / name) as partial:
            if isinstance(model, PeftModel):
                Adapted(model).save(partial, whole=False)
            else:
                model.save_pretrained(partial)
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(partial)

    def restore(self, folder: Path) -> None:
        """Takes up what one of the trainer's checkpoints holds of this callback's.

        Raises:
            RequestError: it holds nothing.
        """
        if not (folder / _FACTS).is_file():
            raise RequestError(
                f"{folder}: holds nothing of ExtrapolateCallback's; resume a run that had it, in its own output folder"
            )
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        self._accuracies = {int(step): accuracy for step, accuracy in facts["accuracies"].items()}
        self._seconds, self.report = facts["seconds"], facts["report"]

    def _resume(self, folder: Path, model: Any) -> None:
        self.restore(folder)
        if self.report and self._then == "stop":
            raise RequestError(f"{folder}: this run ended at its window, step {self._window}; nothing is left to train")
        if self.report and isinstance(model, PeftModel):
            moved, adapted = HFFolder(self._writer.folder / _MOVED_BASE), Adapted(model)
            for name in moved.names():
                adapted.frozen[name].copy_(moved.tensor(name))
            mark_base_as_moved(model, self._writer.folder / _MOVED_BASE)

    def _jump(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        with failing_together():
            if state.is_world_process_zero:
                self._extrapolate(args, state, model)
                if isinstance(model, PeftModel):
                    self._save_base(_MOVED_BASE, model)
        as_in_main_process(model.parameters())
        self.report = from_main_process(lambda: self.report)
        if isinstance(model, PeftModel):
            mark_base_as_moved(model, self._writer.folder / _MOVED_BASE)

    def _extrapolate(self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> None:
        steps = state.max_steps // self._updates_per_step
        self._writer.finish(
            _BASE, self._writer.folder / _BASE, algorithm="unknown", seed=args.seed, config_hash="", training=[]
        )
        window = Trajectory(self._writer.folder)
        self._began = time.perf_counter()
        if len(window.steps) < self.method.spec.fewest_steps:
            raise RequestError(
                f"{self.method.name} needs {self.method.spec.fewest_steps} kept steps in its window; "
                f"the first {self._window} steps hold {len(window.steps)}"
            )
        accuracies = {step: self._accuracies[step] for step in window.steps} if self.method.spec.uses_accuracy else {}
        target = Target(self._target_accuracy, self._target_step or steps)
        prediction = self.method.fit(window, accuracies).predict(target)
        if prediction.logit_factor is not None:
            raise RequestError(f"{self.method.name}: has no weights to train on from")
        put_tensors(model, window.base.as_stored(predicted_tensors(window, prediction.deltas)))
        self._count("extrapolation")
        left = steps - self._window
        spent = self._seconds["validation"] + self._seconds["extrapolation"]
        self.report = {
            "method": self.method.name,
            "window": self._window,
            "kept_steps": window.steps,
            **{f"{name}_seconds": round(seconds, 4) for name, seconds in self._seconds.items()},
            "steps_left": left,
            "saved_seconds": round(self._seconds["training"] / self._window * left - spent, 4),
            **prediction.info,
        }

    def _count(self, what: str) -> None:
        now = time.perf_counter()
        self._seconds[what] += now - self._began
        self._began = now


def put_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Makes a model's weights these ones, by name; tied ones share their place. An adapter stays as it is."""
    if isinstance(model, PeftModel):
        adapted = Adapted(model)
        for name, tensor in tensors.items():
            adapted.put(name, tensor)
        return
    places = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)


def _require_extrapolable(model: Any) -> None:
    """Refuses what cannot be put in by name, or would be lost."""
    if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise RequestError("ExtrapolateCallback: sharded models cannot be extrapolated; launch with DDP")
    if isinstance(model, PeftModel):
        Adapted(model).require_wide()

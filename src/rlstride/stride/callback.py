"""The verified stride as a callback of transformers' Trainer.

trainer = GRPOTrainer(...)
trainer.add_callback(StrideCallback(NextBatch(trainer)))
trainer.train()
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlstride.config.stride import Stride
from rlstride.processes import as_in_main_process, from_main_process
from rlstride.stride.line_search import Found, GainEstimate, LineSearch, Movement, ScoreLevel, paired_gain
from rlstride.trainers import Validate, checkpoint_folder, clear_moments

T = TypeVar("T")
_FACTS, _TENSORS = "stride.json", "stride.safetensors"  # in the trainer's checkpoints


class Validator(Protocol):
    """Held-out problems that come from the trainer itself, such as NextBatch of rlstride.stride.next_batch."""

    @property
    def updates_per_step(self) -> int:
        """The trainer's global steps that make one step of a window."""
        ...

    def serve(self, callback: "StrideCallback") -> None:
        """Begins to call the callback's ``search`` and ``watch``."""
        ...

    def release(self) -> None:
        """Leaves the trainer as it was."""
        ...


class StrideCallback(TrainerCallback):
    """Lets a trainer jump along its own movement wherever held-out problems confirm it.

    For any trainer whose optimiser updates whole tensors in place: full weights or an adapter, one process or several
    with DDP, where the main process decides. A jump comes between two steps, after the trainer has saved what it saves,
    and a resumed run goes on as if there had been no break. Frozen tensors stay. A jump after which the scores of a
    later batch fall beyond noise is taken back. Up to two copies of the trained tensors are held in the CPU's memory,
    and in a search two more where the tensors are.

    Args:
        validate: scores held-out problems; or a Validator, such as NextBatch(trainer), which spends the next training
            batch on it.
        settings: how to search; by default as :class:`rlstride.config.stride.Stride` says.
        updates_per_step: the trainer's global steps that make one step of a window; a Validator knows it itself.

    Attributes:
        history: what every search found.
    """

    def __init__(
        self, validate: Validate | Validator, settings: Stride | None = None, updates_per_step: int = 1
    ) -> None:
        self.settings = settings or Stride()
        self.line_search = LineSearch(self.settings)
        self.history: list[dict[str, Any]] = []
        self._validator = None if callable(validate) else validate
        self._validate = validate if callable(validate) else None
        self._updates_per_step = self._validator.updates_per_step if self._validator else updates_per_step
        self._updates = 0  # since the window began
        self._start: list[Tensor] = []  # A
        self._safe: list[Tensor] = []  # where a jump left from, until it has proved itself
        self._level: ScoreLevel | None = None  # of the scores there
        self._model: Any = None
        self._optimizer: Any = None

    @property
    def is_due(self) -> bool:
        """Whether a window is full."""
        return self._updates >= self.line_search.window * self._updates_per_step

    def search(
        self, evidence: Callable[[float, Movement], GainEstimate], level: ScoreLevel, began: float | None = None
    ) -> Found:
        """Searches, leaves the weights where the search ends, and begins a new window there.

        Args:
            evidence: puts the movement at a factor and says what is known of the weights there.
            level: of the scores at B.
            began: when work for this search began, on time.perf_counter's clock; now, if left out.
        """
        began = time.perf_counter() if began is None else began
        tensors = self._trained()
        movement = Movement(tensors, self._start, self.settings.along)
        if self.settings.verify == "none":
            found = Found(1 + self.settings.first_reach, {})
        else:
            found = self.line_search.run(lambda factor: _as_found_by_main(evidence(factor, movement)))
        movement.move_to(1.0)
        self._safe, self._level = [], None  # a jump before this one has proved itself
        if found.factor != 1:
            self._safe, self._level = _copies(tensors), level
            movement.move_to(found.factor)
            as_in_main_process(tensors)  # whatever the hardware of a process makes of a decomposition
            self._treat_moments()
        self._begin_window()
        self._note(factor=found.factor, gain=found.gain, candidates=len(found.tried), began=began)
        return found

    def summary(self) -> dict[str, Any]:
        """What all searches together did and cost, for a ledger."""
        return {
            "searches": sum(entry["candidates"] > 0 for entry in self.history),
            "jumps": sum(entry["factor"] > 1 for entry in self.history),
            "jumps_taken_back": sum(entry["factor"] == 0 for entry in self.history),
            "factors": [entry["factor"] for entry in self.history],
            "search_seconds": round(sum(entry["seconds"] for entry in self.history), 3),
        }

    def before_jump(self, work: Callable[[], T]) -> T:
        """What ``work`` returns with the weights where the latest search found them."""
        began = time.perf_counter()
        after = [tensor.detach().clone() for tensor in self._trained()]
        self._put(self._safe)
        result = work()
        self._put(after)
        self.history[-1]["seconds"] += time.perf_counter() - began
        return result

    def watch(self, level: ScoreLevel) -> bool:
        """Takes a jump back if scores fall beyond noise before the next search; says whether it did.

        What RL does by itself is never taken back, however its scores go.

        Args:
            level: of the scores that the weights in hand have reached, on other problems than before.
        """
        if self._level is None or not _as_found_by_main(level.is_below(self._level, self.settings.fall)):
            return False
        began = time.perf_counter()
        self._put(self._safe)
        self._treat_moments()
        self.line_search.take_back()
        self._level = None  # else a lucky batch could hold a run back for ever
        self._begin_window()
        self._note(factor=0.0, gain=0.0, candidates=0, began=began)
        return True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._model, self._optimizer = kwargs["model"], kwargs["optimizer"]
        self._begin_window()
        if state.global_step:
            self._resume(checkpoint_folder(args, state))
        if self._validator:
            self._validator.serve(self)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._optimizer = kwargs["optimizer"]
        if self._validate and self.is_due:
            self._search_with(self._validate)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._updates += 1

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "loss" not in state.log_history[-1]:
            return
        for entry in self.history:
            if "step" not in entry:  # since the last log
                entry["step"] = state.global_step
                found = ("factor", "gain", "candidates", "seconds")
                state.log_history[-1] |= {f"stride/{key}": entry[key] for key in found}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = checkpoint_folder(args, state)
        tensors = {f"start.{i}": tensor for i, tensor in enumerate(self._start)}
        tensors |= {f"safe.{i}": tensor for i, tensor in enumerate(self._safe)}
        save_file(tensors, folder / _TENSORS)
        facts = {
            "updates": self._updates,
            "reach": self.line_search.reach,
            "window": self.line_search.window,
            "wealth": self.line_search.investing.wealth,
            "level": [self._level.mean, self._level.error] if self._level else None,
            "history": self.history,
        }
        (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._validator:
            self._validator.release()

    def _search_with(self, validate: Validate) -> None:
        draw = len(self.history)

        def scores_at(factor: float, movement: Movement) -> Tensor:
            movement.move_to(factor)
            return torch.tensor(list(validate(self._model, draw)), dtype=torch.float64)

        at_end = torch.tensor(list(validate(self._model, draw)), dtype=torch.float64)
        if not self.watch(ScoreLevel.of(at_end)):
            self.search(
                lambda factor, movement: paired_gain(scores_at(factor, movement), at_end), ScoreLevel.of(at_end)
            )

    def _resume(self, folder: Path) -> None:
        if not (folder / _FACTS).is_file():
            print(f"stride: {folder} holds nothing of it; a new window begins here", flush=True)
            return
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        kept = load_file(folder / _TENSORS)
        self._start = [kept[f"start.{i}"] for i in range(len(self._start))]
        self._safe = [kept[f"safe.{i}"] for i in range(len(self._start)) if f"safe.{i}" in kept]
        self._updates, self.history = facts["updates"], facts["history"]
        self.line_search.reach, self.line_search.window = facts["reach"], facts["window"]
        self.line_search.investing.wealth = facts["wealth"]
        self._level = ScoreLevel(*facts["level"]) if facts["level"] else None

    def _begin_window(self) -> None:
        self._updates = 0
        self._start = _copies(self._trained())

    def _note(self, *, factor: float, gain: float, candidates: int, began: float) -> None:
        seconds = time.perf_counter() - began
        self.history.append({"factor": factor, "gain": gain, "candidates": candidates, "seconds": seconds})

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def _put(self, tensors: Sequence[Tensor]) -> None:
        for place, kept in zip(self._trained(), tensors, strict=True):
            place.copy_(kept)

    def _treat_moments(self) -> None:
        if self.settings.moments == "clear":
            clear_moments(self._optimizer, self._trained())


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """In the CPU's memory, where a large model's own is full."""
    return [tensor.detach().to("cpu", copy=True).contiguous() for tensor in tensors]


def _as_found_by_main(found: T) -> T:
    """What the main process found: all then choose alike."""
    return from_main_process(lambda: found)

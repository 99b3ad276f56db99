"""Runs one cell's RL from its base, or from where an interrupted run stopped, to a finished trajectory."""

import os
import shutil
import sys
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import parse_flag_from_env

from rlstride.atomic_files import remove_folder, write_text
from rlstride.config.adapters import AdaLoRA
from rlstride.config.section import digest
from rlstride.errors import RequestError, WorkError
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_nothing_else
from rlstride.processes import failing_together, from_main_process, join_processes
from rlstride.stride.callback import StrideCallback
from rlstride.stride.next_batch import NextBatch
from rlstride.study.paths import required_base, teacher_folder
from rlstride.study.plan import kept_steps
from rlstride.study.study import Cell, Study
from rlstride.tasks import build_task
from rlstride.training.adapters import AdaLoRACallback, hold_rank_numbers
from rlstride.training.callbacks import (
    HarvestCallback,
    KeepLease,
    LogLines,
    StopOnSignal,
    last_complete_checkpoint,
    step_of,
)
from rlstride.training.jump import EarlyStop, StopAfter, early_stop, jump_settings, planned_jump
from rlstride.training.lease import Lease, lease
from rlstride.training.precision import BASE, base_as_trained, require_bf16
from rlstride.training.registry import build_trainer
from rlstride.training.run import Run
from rlstride.training.stalled import StopWithoutReward, may_stall, sentence, steps_to_watch, why_stalled
from rlstride.trajectory.manifest import REMEMBERED, Manifest, Stalled, TrainingRecord, read_manifest
from rlstride.trajectory.writer import STEP_RECORD, TrajectoryWriter

LEASE, _STAMP = "lease.json", "config_hash"  # in the folder of the trainer's own checkpoints
_JOB_NAMES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")  # in a job of Slurm, PBS, LSF, Grid Engine
_PATIENCE_SECONDS = 300.0  # of a job of a cluster, with one that was told to end and still saves


def train_cell(
    study: Study, cell: Cell, out: Path, state: Path, jump: str | None = None, *, force: bool = False
) -> Manifest:
    """Trains a cell and keeps its trajectory in ``out``. A finished trajectory of the same settings is left as it is.

    Launched as several processes (torchrun, accelerate), they share the sequences of every step; the main one writes.

    Args:
        state: the trainer's own checkpoints. A rerun with the same settings goes on from the last complete one; they
            are removed once the trajectory is whole.
        jump: the name of one of the study's jumps: the run is the cell's up to its window, and stopped early by it.
        force: replace a finished trajectory of other settings.

    Raises:
        RequestError: the base, the teacher or the GPU is missing, the study has no such jump beside this cell, ``out``
            holds a finished trajectory of other settings, ``out`` or ``state`` holds what no training wrote, or the
            processes cannot share a step equally.
        WorkError: another run writes to ``state``, or a signal ended this one.
    """
    processes = join_processes(study.spec.device)
    with failing_together():
        base, teacher = required_base(study, cell.model), teacher_folder(study, cell)
        if teacher is not None and not (teacher / "config.json").is_file():
            raise RequestError(f"{teacher}: the teacher of {cell} is not there; {_how_to_teach(study, cell, teacher)}")
        planned = None if jump is None else planned_jump(study, cell, jump)
        config_hash = digest(cell_settings(study, cell) | (jump_settings(study, planned) if planned else {}))
        if (finished := _finished(out, config_hash, force)) is not None:
            if processes.is_main_process:
                _say_finished(cell, out)
            return finished
        _require_own_folders(out, state)
        _require_whole_models_and_gpus(study, processes.num_processes)
        if study.spec.training.precision == "bf16":
            require_bf16(study.spec.device, say=processes.is_main_process)
        run = Run(
            base_folder=base,
            state_folder=state,
            task=build_task(study.spec.task, study.task),
            training=study.spec.training,
            algorithm=study.algorithm(cell),
            seed=cell.seed,
            device=study.spec.device,
            teacher_folder=teacher,
            processes=processes.num_processes,
            chat=study.chat(cell.model),
        )
    cut = early_stop(study, cell, planned, run) if planned else None
    about = {"cell": str(cell), "config_hash": config_hash, "device": run.device, "processes": run.processes}
    about |= {} if jump is None else {"jump": jump}
    ledger = ledger_entry(out.parent / "ledger", "train", **about)
    with ExitStack() as whole_run:
        held = None
        with failing_together():
            if processes.is_main_process:
                held = whole_run.enter_context(lease(state / LEASE, patience=_patience()))
        manifest = from_main_process(lambda: _finished(out, config_hash, force))  # by who held the lease until now
        if manifest is not None and processes.is_main_process:
            _say_finished(cell, out)
        if manifest is None:
            with failing_together(), ledger if processes.is_main_process else nullcontext(dict[str, Any]()) as found:
                manifest = _train(run, cell, out, config_hash, held, found, cut)
        if held is not None and held.is_ours():
            held.rest()
            remove_folder(state)  # in one move: another job may be waiting there for the lease
    return manifest


def _train(
    run: Run[Any],
    cell: Cell,
    out: Path,
    config_hash: str,
    held: Lease | None,
    found: dict[str, Any],
    cut: EarlyStop | None,
) -> Manifest:
    """Trains to the last step, or to that of an early stop. What becomes known is for the ledger."""
    updates = run.algorithm.updates_per_step
    last_update = cut.last_update if cut else run.updates
    _quieten_libraries()
    transformers.set_seed(cell.seed)
    checkpoint = from_main_process(lambda: _checkpoint_to_resume(out, config_hash, run))
    found["resumed_from"] = step_of(checkpoint) // updates if checkpoint else 0
    harvest = HarvestCallback(out, run.training.keep_every, updates)
    trainer = build_trainer(run)
    settings = getattr(run.algorithm, "stride", None)  # of RL algorithms only
    stride = StrideCallback(NextBatch(trainer), settings) if settings else None
    trainer.add_callback(KeepLease(held, updates))  # before anything is written
    # What writes into a checkpoint comes before the harvest, which marks it as complete.
    if stride is not None:
        trainer.add_callback(stride)
    if cut is not None:
        trainer.add_callback(cut.callback)
        trainer.add_callback(StopAfter(last_update))
    if isinstance(run.training.adapter, AdaLoRA):
        hold_rank_numbers(trainer.model)
        trainer.add_callback(AdaLoRACallback())
    trainer.add_callback(harvest)
    trainer.add_callback(LogLines(str(cell), updates))
    stop = StopOnSignal(updates)
    trainer.add_callback(stop)
    if not may_stall(run.training, run.algorithm):
        trainer.add_callback(StopWithoutReward(str(cell), steps_to_watch(run.training), updates))
    trainer.remove_callback(transformers.PrinterCallback)
    # TRL writes a model card with every checkpoint; these checkpoints are nobody's model.
    trainer.create_model_card = lambda *args, **kwargs: None
    if not (cut and checkpoint and cut.resumes_at_its_end(trainer, checkpoint)):
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    ended = trainer.state.global_step >= last_update
    stalled = _stalled(run, cell, trainer, harvest.writer, ended=ended)
    if not ended:
        reached = trainer.state.global_step // updates
        raise WorkError(f"{cell}: stopped by SIGTERM after step {reached}; the same command goes on from there")
    records = training_records(trainer.state.log_history, run.batch_size, updates)
    found |= {
        "steps": trainer.state.global_step // updates,
        "step_seconds": round(sum(record.seconds for record in records) / len(records), 4),
        "harvest_seconds": round(harvest.harvest_seconds, 4),
        "completion_tokens": sum(record.tokens for record in records),
        **({"stalled": stalled} if stalled else {}),
        **(stride.summary() if stride else {}),
        **(cut.callback.report if cut else {}),
    }
    return from_main_process(
        lambda: harvest.writer.finish(
            cell.model,
            base_as_trained(run, out),
            algorithm=cell.algorithm,
            seed=cell.seed,
            config_hash=config_hash,
            training=records,
            stalled=stalled,
        )
    )


def _stalled(run: Run[Any], cell: Cell, trainer: Any, writer: TrajectoryWriter, *, ended: bool) -> Stalled | None:
    """Why a run learnt nothing, said on stderr where it may go on all the same.

    Raises:
        WorkError: it may not.
    """
    history, steps = trainer.state.log_history, steps_to_watch(run.training)
    stalled = from_main_process(lambda: why_stalled(run, history, writer, ended=ended))
    if stalled is None:
        return None
    said = f"{cell}: {sentence(stalled, history, steps)}"
    if not may_stall(run.training, run.algorithm):
        raise WorkError(said)
    if trainer.is_world_process_zero():
        print(said, file=sys.stderr, flush=True)
    return stalled


def cell_settings(study: Study, cell: Cell) -> dict[str, Any]:
    """All that a cell's weights depend on, besides the versions of the libraries and what a named folder holds."""
    teacher = study.teacher(cell)
    return {
        "model": study.models[cell.model].model_dump(mode="json"),
        "task": study.task.model_dump(mode="json"),
        "training": study.spec.training.decides_weights(),
        "algorithm": study.algorithm(cell).model_dump(mode="json"),
        "seed": cell.seed,
        **({"teacher": cell_settings(study, teacher)} if teacher else {}),
    }


def training_records(history: list[dict[str, Any]], completions: int, updates_per_step: int) -> list[TrainingRecord]:
    """Reward, sampled tokens and seconds of every step, from the trainer's log history.

    A trainer that samples more completions than it trains on logs their tokens itself, as ``sampled_tokens``. The
    reward is None, and the tokens are 0, of a trainer that samples nothing.

    Args:
        history: the entries that a trainer logged, one for each step.
        completions: rollouts in a step.
        updates_per_step: optimiser updates in a step.
    """
    return [
        TrainingRecord(
            step=entry["step"] // updates_per_step,
            reward=entry.get("rewards/verified/mean"),
            tokens=round(entry.get("sampled_tokens", entry.get("completions/mean_length", 0) * completions)),
            seconds=entry["seconds"],
        )
        for entry in history
        if "loss" in entry
    ]


def _patience() -> float:
    """A person is told at once that another process writes; a job waits."""
    return _PATIENCE_SECONDS if any(name in os.environ for name in _JOB_NAMES) else 0.0


def _require_whole_models_and_gpus(study: Study, processes: int) -> None:
    """Whole models in every process, whatever the launcher offers, and a GPU for each where the study asks for them."""
    for library in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{library}"):
            raise RequestError(f"{library}: sharded models cannot be trained; launch without it, with torchrun")
    if study.spec.device == "cpu":
        return
    if not torch.cuda.is_available():
        raise RequestError(f"{study.path}: device: cuda, but torch finds no GPU on this machine; write device: cpu")
    if (gpus := torch.cuda.device_count()) > 1 and processes == 1:  # the trainer would give each GPU a whole batch
        raise RequestError(
            f"{study.path}: device: cuda: one process sees {gpus} GPUs; launch {gpus} with torchrun --nproc-per-node "
            f"{gpus}, or show it one with CUDA_VISIBLE_DEVICES=0"
        )


def _how_to_teach(study: Study, cell: Cell, folder: Path) -> str:
    """What to do about a teacher that is missing."""
    teacher = study.teacher(cell)
    if teacher is None:
        return "name another one under algorithms"
    return f"make it with rlstride train --study {study.path} --cell {teacher} --out {folder.parent}"


def _require_own_folders(out: Path, state: Path) -> None:
    """What an earlier attempt left is resumed or cleared; nothing else may be there to be cleared with it."""
    kept = ["manifest.json", ".manifest.json.partial", *REMEMBERED, "step_*", ".step_*.partial", ".step_*.former"]
    kept += [BASE, f".{BASE}.partial", f".{BASE}.former"]
    require_nothing_else(out, kept, "a trajectory of rlstride train", step_record=STEP_RECORD)
    if not (state / _STAMP).is_file():
        require_nothing_else(state, [LEASE, f".{LEASE}.*", f".{_STAMP}.partial"], "an unfinished training's state")


def _finished(out: Path, config_hash: str, force: bool) -> Manifest | None:
    """The manifest of a finished run of the same settings, or None where none is there, or one that may be replaced."""
    if not (out / "manifest.json").exists():
        return None
    manifest = read_manifest(out)
    if manifest.config_hash == config_hash:
        return manifest
    if force:
        return None
    raise RequestError(
        f"{out}: a finished trajectory of other settings is here; name another folder, or replace it with --force"
    )


def _say_finished(cell: Cell, out: Path) -> None:
    print(f"{cell}: {out} is finished already", flush=True)


def _checkpoint_to_resume(out: Path, config_hash: str, run: Run[Any]) -> Path | None:
    """The checkpoint to go on from; where there is none, clears what an earlier attempt left: nothing is mixed."""
    stamp = run.state_folder / _STAMP
    replaced = (out / "manifest.json").exists()  # a finished run's
    checkpoint = None if replaced else last_complete_checkpoint(run.state_folder)
    if checkpoint is not None:
        kept = {record.step for record in TrajectoryWriter(out).kept()}
        same_settings = stamp.is_file() and stamp.read_text() == config_hash
        reached = step_of(checkpoint) // run.algorithm.updates_per_step
        if same_settings and kept >= {step for step in kept_steps(run.training) if step <= reached}:
            print(f"{out}: resumes from step {reached}", flush=True)
            return checkpoint
        print(f"{out}: an unfinished run of other settings was here; starts anew", flush=True)
    _clear_but_lease(run.state_folder)
    remove_folder(out.resolve())
    write_text(stamp, config_hash)
    return None


def _clear_but_lease(state: Path) -> None:
    for path in state.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (LEASE, _STAMP):
            path.unlink(missing_ok=True)
    (state / _STAMP).unlink(missing_ok=True)  # last: it tells whose folder this is


def _quieten_libraries() -> None:
    """Leaves progress bars for a fraction of a second, and warnings of transformers about itself, out of the logs."""
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)

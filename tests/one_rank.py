"""What one of several processes does that train, and stride or extrapolate, and write down where they ended."""

import json
from collections.abc import Sequence
from pathlib import Path

import transformers
from safetensors.torch import save_file

from rlstride.config.algorithms import ALGORITHMS
from rlstride.config.stride import Stride
from rlstride.extrapolation.extrapolate_callback import ExtrapolateCallback
from rlstride.processes import join_processes
from rlstride.stride.callback import StrideCallback
from rlstride.stride.next_batch import NextBatch
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder
from rlstride.study.study import Cell
from rlstride.tasks import build_task
from rlstride.training.run import Run


def main(runs: Sequence[tuple[str, Path, Path]]) -> None:
    """Kind, study and folder of each run, made one after the other."""
    for kind, study_file, out in runs:
        make(kind, study_file, out)


def make(kind: str, study_file: Path, out: Path) -> None:
    study, cell = load_study(study_file), Cell("random", "grpo", 0)
    processes = join_processes("cpu")
    transformers.set_seed(0)
    run = Run(
        base_folder=base_folder(study, cell.model),
        state_folder=out / "state",
        task=build_task(study.spec.task, study.task),
        training=study.spec.training,
        algorithm=study.algorithm(cell),
        seed=0,
        device="cpu",
        processes=processes.num_processes,
    )
    trainer = ALGORITHMS["grpo"].load()(run)
    trainer.create_model_card = lambda *args, **kwargs: None
    if kind == "stride":
        settings = Stride(window=1, longest_window=1, significance=0.99, overlap=0.01, first_reach=8.0)
        stride = StrideCallback(NextBatch(trainer), settings)
        stride.line_search.investing.wealth = 1e9  # any gain will do
        trainer.add_callback(stride)
    else:
        once = ExtrapolateCallback("linear", out / "window", window=4, then="go_on")
        trainer.add_callback(once)
    trainer.train()
    rank = processes.process_index
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, out / f"rank{rank}.safetensors")
    (out / f"rank{rank}.json").write_text(json.dumps(stride.history if kind == "stride" else once.report))

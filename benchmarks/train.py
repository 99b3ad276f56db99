"""What a step of RL costs, by algorithm: beside the same step of bare TRL in the same run, and what keeping adds.

For each algorithm, turn by turn: a run as `rlstride train` makes it (weights and checkpoints kept), and TRL's own
trainer with the same batch, as many updates from it, and nothing kept (RLOOTrainer for rloo, GRPOTrainer for all
others). So what an algorithm adds to them stands in its ratio: PPO's value model, DAPO's further draws. Prints, and
writes as CSV, medians over turns.

    python benchmarks/train.py [--study F] [--model NAME] [--algorithms NAME,NAME] [--steps N] [--turns N] [--out CSV]

Targets: harvest under 3 % of training; a step at most 1.1 times bare TRL's.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import transformers
from transformers import Trainer, TrainerCallback

from rlstride.config.algorithms import GRPO, RLOO, Optimisation
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder
from rlstride.study.study import Study
from rlstride.tasks import build_task
from rlstride.training.callbacks import HarvestCallback
from rlstride.training.registry import build_trainer
from rlstride.training.run import Run

WARM_UP = 4  # steps that are not counted


@dataclass(frozen=True)
class Timing:
    """Seconds of a step, with all that happens between two of them; seconds of keeping weights; sampled tokens."""

    step: float
    harvest: float
    tokens: float


class Clock(TrainerCallback):
    """The moments at which steps end."""

    def __init__(self, updates_per_step: int) -> None:
        self.updates_per_step = updates_per_step
        self.ends: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates_per_step == 0:
            self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    parser.add_argument("--model", default="tiny-llama", metavar="NAME")
    parser.add_argument("--algorithms", default="grpo,rloo", metavar="NAME,NAME", help="names in the study")
    parser.add_argument("--steps", type=int, default=24, metavar="N")
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    study = load_study(options.study)
    rows = []
    for name in options.algorithms.split(","):
        run = cell_run(study, options.model, name, options.steps)
        bare = replace(run, algorithm=bare_algorithm(run.algorithm))
        ours, theirs = [], []
        for _ in range(options.turns):
            ours.append(time_run(run, keep=True))
            theirs.append(time_run(bare, keep=False))
        step = statistics.median(timing.step for timing in ours)
        rows.append(
            {
                "model": options.model,
                "algorithm": name,
                "updates_per_step": run.algorithm.updates_per_step,
                "seconds_per_step": round(step, 4),
                "tokens_per_second": round(statistics.median(timing.tokens / timing.step for timing in ours)),
                "harvest_share": round(statistics.median(timing.harvest / timing.step for timing in ours), 4),
                "bare_seconds_per_step": round(statistics.median(timing.step for timing in theirs), 4),
                "ratio": round(statistics.median(o.step / t.step for o, t in zip(ours, theirs, strict=True)), 3),
            }
        )
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if options.out:
        table.to_csv(options.out, index=False)


def cell_run(study: Study, model: str, algorithm: str, steps: int) -> Run[Any]:
    """The run of a study's cell, shortened; its base must be there (`rlstride pretrain`)."""
    return Run(
        base_folder=base_folder(study, model),
        state_folder=Path(),
        task=build_task(study.spec.task, study.task),
        training=study.spec.training.model_copy(update={"steps": steps}),
        algorithm={**study.algorithms, **study.controls}[algorithm],
        seed=0,
        device=study.spec.device,
    )


def bare_algorithm(algorithm: Optimisation) -> Optimisation:
    """TRL's own algorithm with the same rate and KL, and the same updates from a batch."""
    same = ("learning_rate", "beta", "minibatches", "epochs")
    shared = {name: getattr(algorithm, name) for name in same if hasattr(algorithm, name)}
    if isinstance(algorithm, RLOO):
        return RLOO(trainer="rloo", **shared)
    return GRPO(trainer="grpo", **shared)


def time_run(run: Run[Any], *, keep: bool) -> Timing:
    """Trains in a temporary folder. With ``keep``, weights and checkpoints are written as `rlstride train` does."""
    with tempfile.TemporaryDirectory() as folder:
        updates = run.algorithm.updates_per_step
        trainer: Trainer = build_trainer(replace(run, state_folder=Path(folder) / "training"))
        trainer.remove_callback(transformers.PrinterCallback)
        clock, harvest = Clock(updates), HarvestCallback(Path(folder) / "run", run.training.keep_every, updates)
        trainer.add_callback(clock)
        if keep:
            trainer.add_callback(harvest)
            trainer.create_model_card = lambda *args, **kwargs: None
        else:
            trainer.args.save_strategy = transformers.trainer_utils.SaveStrategy.NO
        transformers.set_seed(run.seed)
        trainer.train()
        counted = clock.ends[WARM_UP:]
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        tokens = statistics.mean(
            entry.get("sampled_tokens", entry.get("completions/mean_length", 0) * run.batch_size) for entry in history
        )
        return Timing(
            step=(counted[-1] - counted[0]) / (len(counted) - 1),
            harvest=harvest.harvest_seconds / run.training.steps,
            tokens=tokens,
        )


if __name__ == "__main__":
    main()

"""Whether a batch of rollouts tells how a jump would do: gains estimated from importance weights, and gains measured.

At some kept steps of a trajectory, for jumps along the rank-1 movement of the last kept steps: the gain in accuracy on
the study's validation problems (8 completions of each), and its estimates from several batches of 16 training prompts
and 8 completions of the weights at hand, with the reward measured from 0, as the stride does, and from its mean.

    python experiments/jump_estimates.py TRAJECTORY [--study FILE] [--steps 8,20,30,40,50] [--window 4] [--out CSV]
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rlstride.config.study_file import Decoding
from rlstride.evaluation.benchmark import StudyBenchmark
from rlstride.evaluation.drift import log_probabilities
from rlstride.evaluation.lm import Bench, Completion, CountingHFLM
from rlstride.evaluation.models import parse_models
from rlstride.stride.line_search import Movement, weighted_gain
from rlstride.study.load import load_study
from rlstride.study.study import Study
from rlstride.tasks import Problem, build_task, draw_problems

REACHES = (0.5, 1.0, 2.0, 4.0)
PROMPTS, GROUP, BATCHES = 16, 8, 4
DECODING = Decoding(temperature=1.0, samples=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trajectory", type=Path, metavar="TRAJECTORY")
    parser.add_argument("--study", type=Path, default=Path("config/studies/grid.yaml"), metavar="FILE")
    parser.add_argument("--steps", type=integers, default=[8, 20, 30, 40, 50], metavar="N,N")
    parser.add_argument("--window", type=int, default=4, metavar="N", help="steps that a movement is made of")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    study = load_study(options.study)
    bench = Bench("cpu")
    rows = []
    for step in options.steps:
        before, at = parse_models([str(options.trajectory)], steps=[step - options.window, step])
        start = [tensor.detach().clone() for tensor in bench.load(before).model.parameters()]
        lm = bench.load(at)
        found = at_step(study, lm, start)
        rows += [{"model": options.trajectory.resolve().parents[2].name, "step": step, **row} for row in found]
        print(pd.DataFrame(found).assign(step=step).to_string(index=False), flush=True)
    if options.out:
        pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


def integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def at_step(study: Study, lm: CountingHFLM, start: list[Tensor]) -> list[dict[str, float]]:
    """One row for each reach: the measured gain, and the mean and the spread over batches of each estimate."""
    movement = Movement(list(lm.model.parameters()), start, "rank_1")
    batches = [draw_batch(study, lm, index) for index in range(BATCHES)]
    old = [log_likelihoods(lm, completions) for completions, _ in batches]
    benchmark = StudyBenchmark(study, "validation")
    here = benchmark.score(lm, "", DECODING, seed=0).accuracy
    rows = []
    for reach in REACHES:
        movement.move_to(1 + reach)
        ratios = [log_likelihoods(lm, batch[0]) - each for batch, each in zip(batches, old, strict=True)]
        row = {"accuracy": here, "reach": reach, "measured": benchmark.score(lm, "", DECODING, seed=0).accuracy - here}
        for name, centred in (("from_zero", False), ("from_mean", True)):
            found = [
                weighted_gain(each, rewards, GROUP, float(rewards.mean()) if centred else 0.0)
                for each, (_, rewards) in zip(ratios, batches, strict=True)
            ]
            gains = pd.Series([each.gain for each in found])
            row |= {name: gains.mean(), f"{name}_lowest": gains.min(), f"{name}_highest": gains.max()}
            row |= {f"{name}_overlap": pd.Series([each.overlap for each in found]).mean()}
        rows.append(row)
    movement.move_to(1.0)
    return rows


def draw_batch(study: Study, lm: CountingHFLM, index: int) -> tuple[list[Completion], Tensor]:
    """Completions of the model at hand for training prompts that stand side by side, and their rewards."""
    task = build_task(study.spec.task, study.task)
    problems = draw_problems(task, "train", PROMPTS * BATCHES, seed=7)[index * PROMPTS : (index + 1) * PROMPTS]
    asked: list[Problem] = [problem for problem in problems for _ in range(GROUP)]
    torch.manual_seed(index)
    completions = lm.sample([problem.prompt for problem in asked], DECODING.temperature, task.max_completion_tokens)
    texts = [lm.tok_decode(each.tokens, skip_special_tokens=True) for each in completions]
    rewards = [float(task.verify(problem, text)) for problem, text in zip(asked, texts, strict=True)]
    return completions, torch.tensor(rewards)


def log_likelihoods(lm: CountingHFLM, completions: list[Completion]) -> Tensor:
    """Of whole completions under the weights at hand, (n,)."""
    by_token = log_probabilities(lm.model, completions, DECODING.temperature)  # (N, V)
    tokens = torch.tensor([token for each in completions for token in each.tokens])
    taken = by_token.gather(1, tokens[:, None])[:, 0]
    return torch.stack([part.sum() for part in taken.split([len(each.tokens) for each in completions])])


if __name__ == "__main__":
    main()

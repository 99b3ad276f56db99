"""What lm-eval costs on top of generation: the evaluator's time over that of bare ``generate`` on the same prompts.

Prints both in seconds, their ratio and completions a second. The two take turns, so a busy machine slows both.

    python benchmarks/evaluate.py MODEL_DIR [--study config/config.yaml] [--decoding t1.0] [--turns 3]
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from rlstride.evaluation.benchmark import StudyBenchmark
from rlstride.evaluation.lm import Bench, CountingHFLM
from rlstride.evaluation.models import parse_models
from rlstride.study.config import Decoding
from rlstride.study.load import Study, load_study
from rlstride.tasks import build_task, draw_problems
from rlstride.zoo.pretraining import sample_completions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("--study", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    parser.add_argument("--decoding", default="t1.0", metavar="NAME")
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    options = parser.parse_args()
    study = load_study(options.study)
    decoding = study.spec.evaluation.decodings[options.decoding]
    benchmark, lm = StudyBenchmark(study, "test"), Bench("cpu").seat(parse_models([options.model])[0])
    evaluator, bare = [], []
    for turn in range(options.turns + 1):  # the first warms up
        evaluator.append(benchmark.score(lm, decoding, seed=turn).seconds)
        bare.append(bare_seconds(study, lm, decoding, seed=turn))
    completions = study.spec.evaluation.test_problems * decoding.samples
    ours, theirs = statistics.median(evaluator[1:]), statistics.median(bare[1:])
    print(f"{completions} completions: evaluator {ours:.2f} s, bare generate {theirs:.2f} s, ratio {ours / theirs:.2f}")
    print(f"{completions / ours:.0f} completions a second")


def bare_seconds(study: Study, lm: CountingHFLM, decoding: Decoding, seed: int) -> float:
    """Seconds of generating for the same problems, in batches of the same size and in HFLM's order."""
    task = build_task(study.spec.task, study.task)
    problems = draw_problems(task, "test", study.spec.evaluation.test_problems, seed=0) * decoding.samples
    problems.sort(key=lambda problem: (-len(problem.prompt), problem.prompt))
    torch.manual_seed(seed)
    started = time.monotonic()
    for start in range(0, len(problems), lm.batch_size):
        batch = problems[start : start + lm.batch_size]
        sample_completions(lm.model, lm.tokenizer, batch, task.max_completion_tokens, decoding.temperature)
    return time.monotonic() - started


if __name__ == "__main__":
    main()

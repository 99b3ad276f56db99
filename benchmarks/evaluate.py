"""What scoring a cell costs: lm-eval on top of bare ``generate``, and about sixty edited models in one process.

Times are CPU seconds of one process (OMP_NUM_THREADS=1), medians over turns. The evaluator and bare ``generate`` take
turns on the same problems, in batches of the same size and order; their ratio has a target of 1.5. The edits are made
from the last step's factors and scored on 256 problems x 4 samples; the target is 120 s.

Of a published model's folder: the evaluator over bare ``generate`` on word problems (target 1.2), and exact scoring of
all decodings over one bare forward pass of the prompts (target 1.2).

    python benchmarks/evaluate.py TRAJECTORY [--study config/config.yaml] [--turns 3] [--out FILE.csv] [--document]
    python benchmarks/evaluate.py MODEL [--turns 3] [--out FILE.csv] [--document]
"""

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from document import machine, markdown, write_section

from rlstride.config.study_file import Decoding
from rlstride.config.variants import parse_ablation
from rlstride.evaluation.benchmark import StudyBenchmark
from rlstride.evaluation.lm import Bench, CountingHFLM
from rlstride.evaluation.models import parse_models
from rlstride.evaluation.score import score_on_study
from rlstride.study.load import load_study, resolve_study
from rlstride.study.study import Study
from rlstride.tasks import build_task, draw_problems
from rlstride.zoo.pretraining import sample_completions

_PUBLISHED_BATCH = 32  # what the evaluator takes on a CPU by itself
_RANKS = ("rank_1", "rank_2", "rank_4", "rank_8", *(f"rank_{percent}pct" for percent in range(10, 100, 10)))
_SCOPES = ("attention", "mlp", "third_1", "third_2", "third_3", "all")
EDITS = (
    "in_scope_full",
    *_RANKS,
    *(f"{rank}_unscaled" for rank in _RANKS[:4]),
    *(f"rank_1_x{scale:g}" for scale in (0.25, 0.5, 0.75, 1.25, 1.5)),
    *(f"single_{index}" for index in (2, 4, 8, 16)),
    *(f"rank_{rank}_{control}" for rank in (1, 4) for control in ("random", "random_u", "random_v", "bottom")),
    *(f"{part}_in_{scope}" for part in ("full", "rank_1", "rank_4", "rank_8") for scope in _SCOPES),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trajectory", type=Path, metavar="TRAJECTORY|MODEL")
    parser.add_argument("--study", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    if not (options.trajectory / "manifest.json").is_file():
        table = of_published(options.trajectory, options.turns)
        report(table, options.out)
        if options.document:
            write_published(table)
        return
    study = load_study(options.study)
    decodings = study.spec.evaluation.decodings
    rows = [of_bare_generate(study, options.trajectory, name, options.turns) for name in decodings]
    rows.append(of_edits(study, options.trajectory))
    table = pd.DataFrame(rows).assign(model=options.trajectory.resolve().parents[2].name, machine=machine())
    report(table, options.out)
    if options.document:
        write_document(table)


def report(table: pd.DataFrame, out: Path | None) -> None:
    print(table.drop(columns="machine").to_string(index=False))
    if out:
        table.to_csv(out, index=False, float_format="%.4g")


def of_bare_generate(study: Study, trajectory: Path, name: str, turns: int) -> dict[str, Any]:
    """The evaluator's time over bare generate's, on all test problems at one decoding."""
    decoding = study.spec.evaluation.decodings[name]
    benchmark, lm = StudyBenchmark(study, "test"), Bench("cpu").load(parse_models([str(trajectory)])[-1])
    if lm.shares_prompts:  # a published model
        lm.use_batch_size(_PUBLISHED_BATCH)
    evaluator, bare = [], []
    for turn in range(turns + 1):  # the first warms up
        started = time.process_time()
        benchmark.score(lm, "", decoding, seed=turn)
        evaluator.append(time.process_time() - started)
        bare.append(bare_seconds(study, lm, decoding, seed=turn))
    ours, theirs = statistics.median(evaluator[1:]), statistics.median(bare[1:])
    completions = study.spec.evaluation.test_problems * decoding.samples
    return {"row": "evaluator", "decoding": name, "models": 1, "completions": completions} | {
        "seconds": ours,
        "bare_seconds": theirs,
        "ratio": ours / theirs,
        "target": 1.5,
    }


def of_published(model: Path, turns: int) -> pd.DataFrame:
    """A published model on word problems: by sampling and greedily, and exactly at all decodings at once."""
    with tempfile.TemporaryDirectory() as scratch:
        study = word_problems(model, Path(scratch), "sampled")
        rows = [of_bare_generate(study, model, name, turns) for name in study.spec.evaluation.decodings]
        rows.append(of_bare_forward(word_problems(model, Path(scratch), "exact"), model, turns))
    return pd.DataFrame(rows).assign(model=model.resolve().name, machine=machine(), target=1.2)


def word_problems(model: Path, scratch: Path, scorer: str) -> Study:
    """A study of 32 problems of some 55 tokens, answered in at most 8."""
    rng, rows = random.Random(0), []
    for _ in range(500):
        a, b, c = (rng.randint(30, 99) for _ in range(3))
        who, what = rng.choice(("Tom", "Mary", "Alexander", "Priya")), rng.choice(("apples", "toy cars", "stamps"))
        text = (
            f"{who} has {a} {what}. A friend gives {who} {b} more, and then {c} {what} get lost on the way home. "
            f"How many {what} does {who} have now? Answer with a number.\n"
        )
        rows.append({"question": text, "answer": str(a + b - c)})
    file = scratch / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"kind": "dataset", "source": str(file), "prompt": "{{ question }}", "verifier": "verbatim"}
    evaluation = {"decodings": {"t1.0": {"temperature": 1.0, "samples": 4}, "greedy": {"temperature": 0}}}
    content = {
        "name": "words",
        "task": "words",
        "models": ["published"],
        "algorithms": ["grpo"],
        "controls": [],
        "training": {"steps": 1},
        "evaluation": evaluation | {"headline": "t1.0", "scorer": scorer, "test_problems": 32},
        "define": {
            "tasks": {"words": task | {"max_completion_tokens": 8}},
            "models": {"published": {"source": str(model)}},
            "algorithms": {"grpo": {"trainer": "grpo", "learning_rate": 1.0e-5}},
        },
    }
    return resolve_study(content, scratch / "study.yaml")


def of_bare_forward(study: Study, model: Path, turns: int) -> dict[str, Any]:
    """Exact scoring's time, at all decodings, over a bare forward pass of the prompts alone."""
    benchmark, lm = StudyBenchmark(study, "test"), Bench("cpu").load(parse_models([str(model)])[-1])
    task = build_task(study.spec.task, study.task)
    problems = draw_problems(task, "test", study.spec.evaluation.test_problems, seed=0)
    prompts = sorted(lm.prompt_tokens([problem.prompt for problem in problems], task.max_completion_tokens), key=len)
    asked = {name: (decoding, 0) for name, decoding in study.spec.evaluation.decodings.items()}
    exactly, bare = [], []
    for _ in range(turns + 1):  # the first warms up
        started = time.process_time()
        list(benchmark.score_all(lm, "", asked))
        exactly.append(time.process_time() - started)
        started = time.process_time()
        for start in range(0, len(prompts), 16):
            batch = prompts[start : start + 16]
            ids = torch.tensor([prompt + [0] * (len(batch[-1]) - len(prompt)) for prompt in batch])
            with torch.no_grad():
                lm.model(ids, logits_to_keep=1)
        bare.append(time.process_time() - started)
    ours, theirs = statistics.median(exactly[1:]), statistics.median(bare[1:])
    return {"row": "exact", "decoding": " and ".join(asked), "models": 1, "completions": len(prompts)} | {
        "seconds": ours,
        "bare_seconds": theirs,
        "ratio": ours / theirs,
    }


def bare_seconds(study: Study, lm: CountingHFLM, decoding: Decoding, seed: int) -> float:
    """Seconds of generating for the same problems, in batches of the same size and in HFLM's order."""
    task = build_task(study.spec.task, study.task)
    problems = draw_problems(task, "test", study.spec.evaluation.test_problems, seed=0) * decoding.samples
    problems.sort(key=lambda problem: (-len(problem.prompt), problem.prompt))
    torch.manual_seed(seed)
    lm.tokenizer.padding_side = "left"
    started = time.process_time()
    for start in range(0, len(problems), lm.batch_size):
        batch = problems[start : start + lm.batch_size]
        sample_completions(lm.model, lm.tokenizer, batch, task.max_completion_tokens, decoding.temperature)
    return time.process_time() - started


def of_edits(study: Study, trajectory: Path) -> dict[str, Any]:
    """All edits of the last step, decomposed, made in memory and scored: 256 problems x 4 samples at temperature 1."""
    evaluation = study.spec.evaluation
    sampling = {"decodings": {"t1.0": Decoding(temperature=1.0, samples=4)}, "headline": "t1.0", "test_problems": 256}
    spec = study.spec.model_copy(update={"evaluation": evaluation.model_copy(update=sampling)})
    smaller = dataclasses.replace(study, spec=spec)
    edits = [parse_ablation(name) for name in EDITS]
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        score_on_study(smaller, None, [str(trajectory)], "test", Path(scratch) / "edits.parquet", variants=edits)
        seconds = time.process_time() - started
    return {"row": "edits", "decoding": "t1.0", "models": len(edits), "completions": 1024} | {
        "seconds": seconds,
        "target": 120,
    }


def ratios(table: pd.DataFrame, ours: str, bare: str) -> pd.DataFrame:
    """What a section shows of each measurement, with the names of its two columns of seconds."""
    seconds = {ours: table["seconds"], bare: table["bare_seconds"], "ratio": table["ratio"]}
    rounded = {name: figures.map("{:.2f}".format) for name, figures in seconds.items()}
    return pd.DataFrame({"decoding": table["decoding"], "completions": table["completions"], **rounded})


def write_published(table: pd.DataFrame) -> None:
    """Writes the section on published models."""
    shown = ratios(table, "here, s", "bare, s")
    shown.insert(0, "scorer", table["row"].replace({"evaluator": "sampled"}))
    write_section(
        "evaluate-published",
        f"""
## Evaluation of a published model

{table["machine"].iloc[0]} {table["model"].iloc[0]}; CPU seconds of one process, medians over turns: ratios hold, and
seconds are those of a core that other processes may share.

Word problems of some 50 tokens, answered in at most 8. Sampled: lm-eval's loop over bare `generate` of the same
completions in batches of the same size; a prompt is read once for all of its samples, which bare `generate` does not
do. Exact: the probability of a right completion at all decodings over one bare forward pass of the prompts. Target: at
most 1.2.

{markdown(shown)}
""",
        script="evaluate",
    )


def write_document(table: pd.DataFrame) -> None:
    """Writes the section of docs/benchmarks.md."""
    evaluator, edits = table[table["row"] == "evaluator"], table[table["row"] == "edits"].iloc[0]
    shown = ratios(evaluator, "evaluator, s", "bare generate, s")
    write_section(
        "evaluate",
        f"""
## Evaluation

{table["machine"].iloc[0]} {table["model"].iloc[0]}; CPU seconds of one process, medians over turns.

lm-eval's loop (requests, filters, metrics, by problem) over bare `generate` on the same prompts, in batches of the same
size and order; target: at most 1.5.

{markdown(shown)}

{edits["models"]} edited models of one run (ranks, factors, single triplets, controls, parts of the model), decomposed,
made in memory and scored on 256 problems x 4 samples: {edits["seconds"]:.0f} s (target: at most 120 s).
""",
    )


if __name__ == "__main__":
    main()

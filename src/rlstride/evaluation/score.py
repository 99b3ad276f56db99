"""The verb ``evaluate``: many models through lm-eval in one process, into one table."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlstride.errors import RequestError
from rlstride.evaluation.benchmark import StudyBenchmark, load_tasks, sampling_seed, score_task
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import Candidate, parse_models
from rlstride.evaluation.tables import HOLDS_PROBLEMS, Journal, Row, measurement_key, problems_file, write_tables
from rlstride.outputs import require_free_table
from rlstride.progress import track
from rlstride.study.config import Decoding
from rlstride.study.load import Cell, Study
from rlstride.study.variants import AblationVariant
from rlstride.tasks import Split
from rlstride.tracking.ledger import ledger_entry

Labels = dict[str, str | int]
_UNKNOWN_CELL: Labels = {"model": "", "algorithm": "", "seed": 0}


def score_on_study(
    study: Study,
    cell: Cell | None,
    models: Sequence[str],
    split: Split,
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    variants: Sequence[AblationVariant] | None = None,
    on_the_way: Sequence[AblationVariant] | None = None,
    decodings: Sequence[str] | None = None,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Scores models on a study's task, all on the same problems in the same order; writes ``out`` and ``*-problems``.

    Each (model, seed, variant, step, decoding) has a sampling seed of its own: a row does not depend on what else is
    scored (an edited model's by the rounding of the decomposition that all edits share), and the frozen control is an
    independent replicate of the base. An interrupted run goes on where it stopped.

    Args:
        study: names task, number of problems and decodings.
        cell: labels the rows and seeds the sampling; without it, a trajectory's manifest does.
        models: ``[NAME[@STEP]=]PATH`` of model folders and trajectories (see :func:`parse_models`).
        split: validation (what methods may look at) or test (what is reported).
        out: the Parquet file, one row for each variant, step and decoding.
        steps: of trajectories, the kept steps to score, 0 for the base; all if left out.
        variants: of trajectories, the edits of these steps (of the last if left out) to score instead.
        on_the_way: those of the steps before the last of ``steps``; all if left out.
        decodings: some of the study's; all if left out.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: a decoding, a path or a model is wrong, or ``out`` exists or does not end in .parquet.
    """
    require_free_table(out, force=force, beside={problems_file(out): HOLDS_PROBLEMS})
    chosen = _chosen_decodings(study, decodings)
    candidates = parse_models(models, steps=steps, variants=variants, on_the_way=on_the_way)
    benchmark = StudyBenchmark(study, split)
    bench, journal, rows = Bench(device), Journal(out), list[Row]()
    about = {"cell": str(cell) if cell else None, "split": split, "models": len(candidates), "device": device}
    # Edits are scored by a job of their own, and two jobs never write to one file.
    stage = f"evaluate-{split}" if variants is None else f"evaluate-{split}-edits"
    with ledger_entry(out.parent / "ledger", stage, **about) as found:
        for candidate in track(candidates, f"evaluate {split}"):
            place = labels_of(study, cell, candidate)
            weights = candidate.weights_digest()
            for name, decoding in chosen.items():
                seed = sampling_seed(place["model"], place["seed"], candidate.variant, candidate.step, name, split)
                key = _key(weights, seed, task=benchmark.metadata, decoding=decoding.model_dump())
                measurement = journal.find(key)
                if measurement is None:
                    measurement = benchmark.score(bench.seat(candidate), decoding, seed)
                    journal.add(key, measurement)
                rows.append(Row({**place, **_which(candidate, study.spec.task, split, name)}, measurement))
        found["completions"] = sum(row.measurement.n * row.measurement.samples for row in rows)
        found["tokens"] = sum(row.measurement.tokens for row in rows)
        write_tables(out, rows)
    journal.remove()


def score_on_lm_eval_tasks(
    models: Sequence[str],
    tasks: Sequence[str],
    out: Path,
    *,
    split: Split = "test",
    steps: Sequence[int] | None = None,
    variants: Sequence[AblationVariant] | None = None,
    on_the_way: Sequence[AblationVariant] | None = None,
    limit: int | None = None,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Scores models on any lm-eval tasks, with each task's own prompts, decoding and primary metric.

    Rows have decoding ``task``, the metric's name in the column ``metric``, and an interval from lm-eval's standard
    error. A group or tag stands for all its tasks, one row each.

    Args:
        models: ``[NAME[@STEP]=]PATH``, where a path may be org/name on the Hugging Face hub.
        tasks: names known to lm-eval, names of the project's own tasks (rlstride_chain), or paths of task YAMLs.
        out: the Parquet file, one row for each variant, step and task.
        split: what the rows are for: methods that use accuracy look at validation rows only. lm-eval's task says which
            problems these are.
        steps: of trajectories, the kept steps to score, 0 for the base; all if left out.
        variants: of trajectories, the edits of these steps (of the last if left out) to score instead.
        on_the_way: those of the steps before the last of ``steps``; all if left out.
        limit: the first so many problems of each task only.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: a task, a path or a model is wrong, or ``out`` exists or does not end in .parquet.
    """
    require_free_table(out, force=force, beside={problems_file(out): HOLDS_PROBLEMS})
    candidates = parse_models(models, steps=steps, variants=variants, on_the_way=on_the_way, hub=True)
    loaded = load_tasks(tasks)
    bench, journal, rows = Bench(device), Journal(out), list[Row]()
    for candidate in track(candidates, "evaluate"):
        place: Labels = {"study": "", **_UNKNOWN_CELL, "model": candidate.variant, **candidate.labels}
        weights = candidate.weights_digest()
        for name, task in loaded.items():
            seed = sampling_seed(place["model"], place["seed"], candidate.variant, candidate.step, name, split)
            key = _key(weights, seed, task=task.dump_config(), limit=limit)
            measurement = journal.find(key)
            if measurement is None:
                measurement = score_task(bench.seat(candidate), task, seed, limit)
                journal.add(key, measurement)
            rows.append(Row({**place, **_which(candidate, name, split, "task")}, measurement))
    write_tables(out, rows)
    journal.remove()


def labels_of(study: Study, cell: Cell | None, candidate: Candidate) -> Labels:
    """The columns that say whose row it is: the cell's, else those of the candidate's trajectory."""
    known: Labels = {"model": cell.model, "algorithm": cell.algorithm, "seed": cell.seed} if cell else {}
    return {"study": study.spec.name, **_UNKNOWN_CELL, **candidate.labels, **known}


def _chosen_decodings(study: Study, names: Sequence[str] | None) -> dict[str, Decoding]:
    known = study.spec.evaluation.decodings
    for name in names or []:
        if name not in known:
            raise RequestError(f"--decodings: {study.path} has no decoding {name!r}; it has {', '.join(known)}")
    return {name: known[name] for name in names or known}


def _which(candidate: Candidate, task: str, split: str, decoding: str) -> Labels:
    return {
        "variant": candidate.variant,
        "step": candidate.step,
        "task": task,
        "split": split,
        "decoding": decoding,
    }


def _key(weights: str | None, seed: int, **request: Any) -> str | None:
    """The journal's key of a measurement; None where nothing tells whether the weights are still the same."""
    if weights is None:
        return None
    libraries = {name: version(name) for name in ("rlstride", "lm_eval", "torch", "transformers")}
    return measurement_key(weights=weights, seed=seed, libraries=libraries, **request)

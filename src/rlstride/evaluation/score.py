"""The verb ``evaluate``: many models through lm-eval in one process, into one table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlstride.config.study_file import Decoding
from rlstride.config.variants import AblationVariant
from rlstride.errors import RequestError
from rlstride.evaluation.asked_tasks import AskedTasks, asked_benchmarks, with_gains
from rlstride.evaluation.benchmark import StudyBenchmark, sampling_seed
from rlstride.evaluation.lm import Bench, CountingHFLM
from rlstride.evaluation.lm_eval_tasks import loaded_tasks, score_task, task_manager
from rlstride.evaluation.models import Candidate, parse_models
from rlstride.evaluation.prompting import (
    Prompting,
    chat_template,
    documents_digest,
    files_digest,
    names_of,
    require_template,
)
from rlstride.evaluation.score_tables import Journal, Measurement, Row, files_beside, measurement_key, write_tables
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_table
from rlstride.progress import track
from rlstride.study.study import Cell, Study
from rlstride.tasks import Split

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
    batch_size: int | str | None = None,
    samples: bool = False,
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
        batch_size: sequences at once, or "auto"; by the model's size if left out. Sampled completions depend on it.
        samples: whether to write prompts and completions too, into ``*-samples.jsonl``.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: a decoding, a path or a model is wrong, or ``out`` exists or does not end in .parquet.
    """
    require_free_table(out, force=force, beside=files_beside(out))
    chosen = _chosen_decodings(study, decodings)
    candidates = parse_models(models, steps=steps, variants=variants, on_the_way=on_the_way)
    _tell_of_templates(
        [each for each in candidates if study.chat(str(labels_of(study, cell, each)["model"])) is None],
        "the study says no chat of this model: prompts are bare, in training and in scoring",
    )
    benchmark = StudyBenchmark(study, split)
    how: dict[str, str | int | bool] = {} if batch_size is None else {"batch_size": str(batch_size)}
    bench, journal, rows = Bench(device), Journal(out), list[Row]()
    about = {"cell": str(cell) if cell else None, "split": split, "models": len(candidates), "device": device}
    # Edits are scored by a job of their own, and two jobs never write to one file.
    stage = f"evaluate-{split}" if variants is None else f"evaluate-{split}-edits"
    with ledger_entry(out.parent / "ledger", stage, **about) as found:
        for candidate in track(candidates, f"evaluate {split}"):
            place = labels_of(study, cell, candidate)
            digests, model = model_digests(candidate), str(place["model"])
            requests: dict[str, Request] = {}
            for name, decoding in chosen.items():
                seed = sampling_seed(place["model"], place["seed"], candidate.variant, candidate.step, name, split)
                requests[name] = study_request(benchmark, model, digests, decoding, seed, samples=samples, **how)
            load = partial(_loaded, bench, candidate, batch_size)
            for name, measurement in measured(benchmark, journal, load, model, requests, samples).items():
                rows.append(Row({**place, **_which(candidate, study.spec.task, split, name)}, measurement, how))
        found["completions"] = sum(row.measurement.n * row.measurement.samples for row in rows)
        found["tokens"] = sum(row.measurement.tokens for row in rows)
        write_tables(out, rows, samples)
    journal.remove()


@dataclass(frozen=True)
class Request:
    """A decoding, the seed of its sampling, and the key under which the journal holds the measurement."""

    decoding: Decoding
    seed: int
    key: str | None


def study_request(
    benchmark: StudyBenchmark,
    model: str,
    digests: Mapping[str, str] | None,
    decoding: Decoding,
    seed: int,
    **asked: Any,
) -> Request:
    """What is asked of a model of a study.

    Args:
        benchmark: the study's.
        model: its name in the study.
        digests: of its files; None where nothing tells whether they changed.
        decoding: how completions are drawn.
        seed: of the sampling.
        asked: what else decides the measurement, as JSON holds it.
    """
    return Request(decoding, seed, _key(digests, seed, decoding=decoding.model_dump(), **benchmark.key(model), **asked))


def measured(
    benchmark: StudyBenchmark,
    journal: Journal,
    load: Callable[[], CountingHFLM],
    model: str,
    requests: Mapping[str, Request],
    with_texts: bool = False,
) -> dict[str, Measurement]:
    """One model's measurements by decoding: those that an interrupted run left, and new ones of the others."""
    known = {name: journal.find(request.key) for name, request in requests.items()}
    missing = {name: request for name, request in requests.items() if known[name] is None}
    found = {name: measurement for name, measurement in known.items() if measurement is not None}
    if missing:
        asked = {name: (request.decoding, request.seed) for name, request in missing.items()}
        for name, measurement in benchmark.score_all(load(), model, asked, with_texts):
            journal.add(missing[name].key, measurement)
            found[name] = measurement
    return {name: found[name] for name in requests}


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
    prompting: Prompting | None = None,
    samples: bool = False,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Scores models on any lm-eval tasks, as each task's file has it, unless ``prompting`` says otherwise.

    Rows have decoding ``task``, the primary metric's name in the column ``metric``, an interval from lm-eval's standard
    error, and columns that say how the task was put; ``*-metrics`` has all metrics. Where ``prompting`` says how many
    completions, the interval is from a bootstrap over problems, and pass@k has columns. A group or tag stands for all
    its tasks, one row each.

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
        prompting: chat template, system prompt, worked examples, generation arguments, completions and batch size.
        samples: whether to write prompts and completions too, into ``*-samples.jsonl``.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: a task, a path, a model or what is asked of it is wrong, or ``out`` exists or does not end in
            .parquet.
    """
    require_free_table(out, force=force, beside=files_beside(out))
    candidates = parse_models(models, steps=steps, variants=variants, on_the_way=on_the_way, hub=True)
    asked = AskedTasks(loaded_tasks(task_manager(tasks, "--tasks"), tasks), prompting or Prompting(), limit)
    journal = Journal(out)
    rows = _score_tasks(candidates, [asked], _labels_by_name, split, journal, samples, device)
    write_tables(out, rows, samples)
    journal.remove()


def score_on_benchmarks(
    study: Study,
    cell: Cell | None,
    models: Sequence[str],
    out: Path,
    *,
    split: Split = "test",
    steps: Sequence[int] | None = None,
    variants: Sequence[AblationVariant] | None = None,
    batch_size: int | str | None = None,
    samples: bool = False,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Scores models on a study's benchmarks, each on those that are about it; writes ``out`` and ``*-metrics``.

    Rows are those of :func:`score_on_lm_eval_tasks`; prompts are in the chat template where the study says so of the
    model. In ``*-metrics`` stands each figure's gain over the base, with an interval from a bootstrap over problems.
    An interrupted run goes on where it stopped.

    Args:
        study: names the benchmarks.
        cell: labels the rows and seeds the sampling; without it, a trajectory's manifest does.
        models: ``[NAME[@STEP]=]PATH`` of model folders and trajectories (see :func:`parse_models`).
        out: the Parquet file, one row for each model, task and decoding.
        split: what the rows are for; lm-eval's tasks say which problems these are.
        steps: of trajectories, the kept steps to score or to edit; all, or the last, if left out.
        variants: of trajectories, the edits of these steps to score instead.
        batch_size: sequences at once, or "auto"; by the model's size if left out.
        samples: whether to write prompts and completions too, into ``*-samples.jsonl``.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: the study has no benchmark, or one cannot be scored as it says; a path or a model is wrong; models
            of several bases are scored together; or ``out`` exists or does not end in .parquet.
    """
    require_free_table(out, force=force, beside=files_beside(out))
    candidates = parse_models(models, steps=steps, variants=variants)
    names = sorted({str(labels_of(study, cell, each)["model"]) for each in candidates})
    if len(names) > 1:
        raise RequestError(f"--benchmarks: {' and '.join(names)} may be spoken to differently: score one at a time")
    asked = asked_benchmarks(study, names[0], batch_size)
    if not any(each.of(candidates) for each in asked):
        raise RequestError(f"--benchmarks: no benchmark of {study.path} is about {names_of(candidates)}")
    journal = Journal(out)
    with ledger_entry(out.parent / "ledger", "evaluate-benchmarks", cell=str(cell) if cell else None) as found:
        place = partial(labels_of, study, cell)
        rows = with_gains(_score_tasks(candidates, asked, place, split, journal, samples, device))
        found["tokens"] = sum(row.measurement.tokens for row in rows)
        write_tables(out, rows, samples)
    journal.remove()


def _score_tasks(
    candidates: Sequence[Candidate],
    asked: Sequence[AskedTasks],
    place_of: Callable[[Candidate], Labels],
    split: Split,
    journal: Journal,
    samples: bool,
    device: str,
) -> list[Row]:
    """Every model on all tasks that are asked of it; what the journal holds is not measured again."""
    for each in asked:
        _tell(each.prepare())
    templates = [_templates(each.of(candidates), each.tasks, each.prompting) for each in asked]
    problems = [{name: documents_digest(task, each.limit) for name, task in each.tasks.items()} for each in asked]
    bench, rows = Bench(device), list[Row]()
    for candidate in track(candidates, "evaluate"):
        place, model = place_of(candidate), model_digests(candidate)
        for each, template_of, digests in zip(asked, templates, problems, strict=True):
            for name, task in each.tasks.items() if each.of([candidate]) else ():
                template, which = template_of[candidate.tokenizer], _which(candidate, name, split, each.decoding)
                seed = each.seed(place, which)
                how = each.prompting.columns(task, template) | {"limit": each.limit or 0}
                request = {"task": task.dump_config(), "problems": digests[name], "template": template, **how}
                key = _key(model, seed, samples=samples, **each.prompting.further(), **request)
                measurement = journal.find(key)
                if measurement is None:
                    lm = _loaded(bench, candidate, each.prompting.batch_size)
                    measurement = score_task(lm, task, seed, each.limit, each.prompting, samples)
                    journal.add(key, measurement)
                rows.append(Row({**place, **which}, measurement, how))
    for each in asked:
        _tell(_after_scoring([row for row in rows if row.labels["decoding"] == each.decoding], each.tasks))
    return rows


def _labels_by_name(candidate: Candidate) -> Labels:
    """Of a model that belongs to no study: its own name stands for the base's, where no trajectory tells."""
    return {"study": "", **_UNKNOWN_CELL, "model": candidate.variant, **candidate.labels}


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


def _loaded(bench: Bench, candidate: Candidate, batch_size: int | str | None) -> CountingHFLM:
    lm = bench.load(candidate)
    if batch_size is not None:
        lm.use_batch_size(batch_size)
    return lm


def _templates(candidates: Sequence[Candidate], tasks: Mapping[str, Any], asked: Prompting) -> dict[str, str | None]:
    """The chat template that each tokenizer's prompts are rendered with, None for bare ones, by the tokenizer's folder.

    Raises:
        RequestError: a template is asked for where there is none, or one that cannot do what is asked of it.
    """
    if not asked.chat_template:
        _tell_of_templates(candidates, "--apply-chat-template would use it")
        return {candidate.tokenizer: None for candidate in candidates}
    found: dict[str, str | None] = {}
    for candidate in candidates:
        if candidate.tokenizer in found:
            continue
        tokenizer, found[candidate.tokenizer] = chat_template(candidate)
        takes_system = require_template(candidate, tokenizer, asked)
        described = [name for name, task in tasks.items() if task.get_config("description")]
        if described and not takes_system:
            losers = ", ".join(described)
            _tell(
                [f"{losers}: without the description, as the template of {candidate.tokenizer} has no system message"]
            )
    return found


def _tell_of_templates(candidates: Sequence[Candidate], hint: str) -> None:
    """Says once which of the models are chat models, as all of them are scored without their templates."""
    by_tokenizer = {candidate.tokenizer: candidate for candidate in candidates}
    chats = {place for place, candidate in by_tokenizer.items() if chat_template(candidate)[1] is not None}
    if chats:
        named = names_of([candidate for candidate in candidates if candidate.tokenizer in chats])
        _tell([f"{named}: scored without the chat template that the tokenizer has ({hint})"])


def _after_scoring(rows: Sequence[Row], tasks: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know of its figures: completions that were dropped, prompts that were cut."""
    notes = []
    for name, task in tasks.items():
        of_task = [row for row in rows if row.labels["task"] == name]
        if not of_task:  # none of the models is asked about it
            continue
        repeats, averaged = int(task.get_config("repeats") or 1), {row.measurement.samples for row in of_task}
        if task.OUTPUT_TYPE == "generate_until" and averaged != {repeats}:
            notes.append(
                f"{name}: its file has repeats: {repeats}, but its filter leaves {min(averaged)} to average: "
                f"samples says {min(averaged)}"
            )
        cut = max(int(row.measurement.more["cut_prompts"]) for row in of_task)
        if cut:
            notes.append(f"{name}: up to {cut} prompts were longer than the model takes and lost their beginnings")
    return notes


def _tell(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"evaluate: {sentence}", file=sys.stderr, flush=True)


def model_digests(candidate: Candidate) -> dict[str, str] | None:
    """Digests of a model's weights, configuration and tokenizer; None where nothing tells whether they changed."""
    weights = candidate.weights_digest()
    if weights is None:
        return None
    return {
        "weights": weights,
        "files": files_digest(candidate.source),
        "tokenizer": files_digest(candidate.tokenizer),
    }


def _key(model: Mapping[str, str] | None, seed: int, **request: Any) -> str | None:
    """The journal's key of a measurement; None of a model without digests."""
    if model is None:
        return None
    libraries = {name: version(name) for name in ("rlstride", "lm_eval", "torch", "transformers")}
    return measurement_key(**model, seed=seed, libraries=libraries, **request)

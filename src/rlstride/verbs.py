"""What each verb of the command line calls, with its flags as arguments.

Modules are imported where they are needed: torch, TRL and lm-eval take seconds that `rlstride check` need not wait.
"""

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rlstride.errors import RequestError, WorkError
from rlstride.extras import require

if TYPE_CHECKING:
    from rlstride.evaluation.prompting import Prompting
    from rlstride.evaluation.scorer import ValidationScorer


def check(options: argparse.Namespace) -> None:
    """Prints what a study holds and what it will take."""
    from rlstride.budget.estimates import describe
    from rlstride.config.models import PublishedModel
    from rlstride.study.load import load_study

    study = load_study(options.study)
    print(describe(study))
    if any(isinstance(model, PublishedModel) for model in study.models.values()):
        from rlstride.zoo.characters import check_tokenizers  # takes a second, which tiny models need not wait

        for sentence in check_tokenizers(study):
            print(sentence)


def pretrain(options: argparse.Namespace) -> None:
    """Makes a base."""
    with _imports():
        from rlstride.study.load import load_study
        from rlstride.zoo.bases import make_base

    make_base(load_study(options.study), options.model, options.out, force=options.force)


def train(options: argparse.Namespace) -> None:
    """Trains one cell, or goes on with it."""
    from rlstride.study.load import load_study

    study = load_study(options.study)
    cell, state = study.cell(options.cell), options.state or options.out.parent / "training"
    processes = _positive(options.processes, "--processes")
    if processes > 1:
        from rlstride.processes import launch_processes

        verb = ["train", "--study", options.study, "--cell", cell, "--out", options.out, "--state", state]
        verb += ["--jump", options.jump] if options.jump else []
        verb += ["--force"] if options.force else []
        launch_processes(processes, [*map(str, verb), *(["--debug"] if options.debug else [])])
    with _imports("train"):
        from rlstride.training.launch import train_cell

    train_cell(study, cell, options.out, state, options.jump, force=options.force)


def ingest(options: argparse.Namespace) -> None:
    """Makes a trajectory of a run trained elsewhere."""
    from rlstride.trajectory.ingest import ingest

    ingest(
        options.sources,
        options.base,
        options.out,
        steps=options.steps,
        algorithm=options.algorithm,
        seed=options.seed,
        model_key=options.model_key,
        force=options.force,
    )


def inspect(options: argparse.Namespace) -> None:
    """Prints what a path is, and what is wrong with it."""
    from rlstride.trajectory.inspect import inspect

    findings = inspect(options.path, options.base, options.model_key)
    print("\n".join([*findings.facts, *(f"problem: {problem}" for problem in findings.problems)]))
    if findings.problems:
        raise WorkError(f"{options.path}: problems found: {len(findings.problems)}")


def spectra(options: argparse.Namespace) -> None:
    """Measures every kept update of a trajectory."""
    with _imports():
        from rlstride.spectra.table import DEFAULT_TOLERANCES, write_spectra

    rank = None if options.rank == "full" else _positive(options.rank, "--rank")
    write_spectra(
        options.trajectory,
        options.out,
        rank=rank,
        tolerances=options.tolerances or DEFAULT_TOLERANCES,
        device=options.device,
        force=options.force,
    )


def ablate(options: argparse.Namespace) -> None:
    """Writes edited models of one kept step."""
    with _imports():
        from rlstride.config.variants import AblationVariant, read_variants
        from rlstride.edits.step_edits import write_ablations
        from rlstride.trajectory.store import Trajectory

    trajectory = Trajectory(options.trajectory)
    step = trajectory.full_last_step if options.step == "last" else _positive(options.step, "--step")
    if options.variants is None:
        if options.rank < 1:
            raise RequestError(f"--rank: expected a whole number from 1, not {options.rank}")
        variant = AblationVariant(
            options.out.name, options.rank, options.rescale, scale=options.scale, scope=options.scope
        )
        write_ablations(trajectory, step, {options.out: variant}, force=options.force)
        return
    variants = read_variants(options.variants)
    folders = {options.out / variant.name: variant for variant in variants}
    write_ablations(trajectory, step, folders, force=options.force)


def dynamics(options: argparse.Namespace) -> None:
    """Measures how linear a trajectory is."""
    with _imports():
        from rlstride.dynamics.table import write_dynamics

    write_dynamics(options.trajectory, options.evaluations, options.out, decoding=options.decoding, force=options.force)


def drift(options: argparse.Namespace) -> None:
    """Measures how far a run's models are from its base in what they say."""
    with _imports("evaluate"):
        from rlstride.config.variants import read_variants
        from rlstride.evaluation.drift import write_drift
        from rlstride.study.load import load_study

    study = load_study(options.study)
    write_drift(
        study,
        study.cell(options.cell) if options.cell else None,
        options.trajectory,
        options.out,
        steps=options.steps,
        variants=[] if options.variants is None else read_variants(options.variants),
        problems=options.problems,
        device=options.device,
        force=options.force,
    )


def extrapolate(options: argparse.Namespace) -> None:
    """Predicts later models from a first part of a trajectory."""
    with _imports():
        from rlstride.config.variants import window_variant
        from rlstride.extrapolation.predict import write_predictions
        from rlstride.trajectory.store import Trajectory

    pairs = [(method, window) for window in options.window for method in options.method]
    single = len(pairs) == 1
    folders = {
        options.out if single else options.out / window_variant(window, method): (method, window)
        for method, window in pairs
    }
    write_predictions(
        Trajectory(options.trajectory),
        folders,
        evaluations=options.evaluations,
        decoding=options.decoding,
        target_accuracy=options.target_accuracy,
        target_step=options.target_step,
        scorer=None if options.study is None else lambda: _validation_scorer(options),
        where_applicable=options.where_applicable,
        force=options.force,
    )


def evaluate(options: argparse.Namespace) -> None:
    """Scores models, on a study's task or on any that lm-eval knows."""
    with _imports("evaluate"):
        from rlstride.config.variants import read_variants
        from rlstride.evaluation.score import score_on_lm_eval_tasks, score_on_study
        from rlstride.study.load import load_study

    if (options.study is None) == (options.tasks is None):
        raise RequestError("give either --study, for a study's own task, or --tasks, for tasks that lm-eval knows")
    if options.on_the_way and not options.variants:
        raise RequestError("--on-the-way: these are some of --variants, which are not given")
    variants = None if options.variants is None else read_variants(options.variants)
    on_the_way = None if options.on_the_way is None else read_variants(options.on_the_way, "--on-the-way")
    chosen = {"steps": options.steps, "variants": variants, "on_the_way": on_the_way, "device": options.device}
    chosen |= {"samples": options.samples}
    prompting = _prompting(options)
    chosen |= {"force": options.force}
    if options.study is None:
        chosen |= {"split": options.split, "limit": options.limit, "prompting": prompting}
        score_on_lm_eval_tasks(options.models, options.tasks, options.out, **chosen)
        return
    chosen |= {"batch_size": prompting.batch_size}
    study = load_study(options.study)
    cell = study.cell(options.cell) if options.cell else None
    score_on_study(study, cell, options.models, options.split, options.out, decodings=options.decodings, **chosen)


def collect(options: argparse.Namespace) -> None:
    """Gathers the cells' Parquet files into a study's tables."""
    with _imports():
        from rlstride.study.load import load_study
        from rlstride.tables.collect import collect
        from rlstride.tables.specs import TABLES

    tables = options.tables.split(",") if options.tables else TABLES
    collect(options.results, load_study(options.study) if options.study else None, tables)


def judge(options: argparse.Namespace) -> None:
    """Gives every claim its verdict."""
    with _imports():
        from rlstride.claims.table import judge
        from rlstride.study.load import load_study

    claims = judge(options.results, load_study(options.study or options.results / "study.yaml"))
    for verdict, number in claims["verdict"].value_counts().items():
        print(f"{number} {verdict}")


def report(options: argparse.Namespace) -> None:
    """Writes claims, figures and the page."""
    with _imports("report"):
        from rlstride.report.page import write_report
        from rlstride.study.load import load_study

    study = load_study(options.study or options.results / "study.yaml")
    write_report(options.results, study, options.out, claims_file=options.claims, force=options.force)


def track(options: argparse.Namespace) -> None:
    """Writes what was measured to MLflow."""
    with _imports("track"):
        from rlstride.study.load import load_study
        from rlstride.tracking.mlflow_writer import track

    study = load_study(options.study or options.results / "study.yaml")
    track(
        options.results,
        study,
        options.tracking_uri
        or study.spec.tracking.uri
        or f"sqlite:///{(options.results.parent / 'mlflow.db').resolve()}",
    )


def cluster_check(options: argparse.Namespace) -> None:
    """Prints whether a study's jobs could start on this cluster."""
    from rlstride.cluster.check import check_cluster, read_profile
    from rlstride.study.load import load_study

    study = load_study(options.study)
    if options.results:
        study = replace(study, spec=study.spec.model_copy(update={"results": str(options.results)}))
    found = check_cluster(study, read_profile(options.profile), probe=not options.no_probe)
    print("\n".join([*found.facts, *(f"problem: {problem}" for problem in found.problems)]))
    if found.problems:
        raise WorkError(f"{options.study}: problems found: {len(found.problems)}")


def cluster_orphans(options: argparse.Namespace) -> None:
    """Prints the jobs that ended runs of a study left, and waits for them or ends them."""
    from rlstride.cluster.orphans import await_orphans, end_orphans, orphans

    if options.wait:
        await_orphans(options.results)
    elif options.cancel:
        end_orphans(options.results, elsewhere=True)
    left = orphans(options.results)
    print("\n".join(f"job {job}: {state.lower()}" for job, state in sorted(left.items())) or "none")


@contextmanager
def _imports(extra: str | None = None) -> Iterator[None]:
    """Imports torch and its like a quarter faster: nothing that a module holds is garbage.

    Nor is it looked at again by later collections, which takes another second off a run of 40 steps.

    Args:
        extra: of the package, which the verb needs.

    Raises:
        ExtraError: it is not installed, or in other versions than were tested.
    """
    if extra:
        require(extra)
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once: a caller from Python may have garbage by then
            gc.freeze()
        gc.enable()


def _validation_scorer(options: argparse.Namespace) -> "ValidationScorer":
    require("evaluate")
    from rlstride.evaluation.scorer import ValidationScorer
    from rlstride.study.load import load_study
    from rlstride.trajectory.store import Trajectory

    return ValidationScorer(load_study(options.study), Trajectory(options.trajectory), options.device)


def _prompting(options: argparse.Namespace) -> "Prompting":
    """How tasks are put, from the flags of ``evaluate``."""
    from rlstride.evaluation.prompting import Prompting, parse_generation, read_system_prompt

    asked = {
        "--apply-chat-template": options.apply_chat_template,
        "--system-prompt": options.system_prompt is not None,
        "--fewshot": options.fewshot is not None,
        "--fewshot-as-multiturn": options.fewshot_as_multiturn is not None,
        "--gen-kwargs": options.gen_kwargs is not None,
    }
    if options.study is not None and any(asked.values()):
        flag = next(flag for flag, given in asked.items() if given)
        raise RequestError(f"{flag}: a study's prompts are bare and its decodings its own; this flag goes with --tasks")
    if options.fewshot_as_multiturn and not options.apply_chat_template:
        raise RequestError("--fewshot-as-multiturn: turns need a conversation; give --apply-chat-template too")
    if options.fewshot is not None and options.fewshot < 0:
        raise RequestError(f"--fewshot: expected a whole number from 0, not {options.fewshot}")
    size = options.batch_size
    turns = options.apply_chat_template if options.fewshot_as_multiturn is None else options.fewshot_as_multiturn
    return Prompting(
        chat_template=options.apply_chat_template,
        multiturn=turns,
        system_prompt=None if options.system_prompt is None else read_system_prompt(options.system_prompt),
        fewshot=options.fewshot,
        generation={} if options.gen_kwargs is None else parse_generation(options.gen_kwargs),
        batch_size=size if size in (None, "auto") else _positive(size, "--batch-size"),
    )


def _positive(text: str, flag: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise RequestError(f"{flag}: expected a whole number from 1, not {text!r}")
    return int(text)

"""The verbs ``cluster check`` and ``cluster orphans``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rlstride.cli.app import cluster, show, verb_of
from rlstride.cli.options import Json, Results, StudyFile
from rlstride.errors import RequestError, WorkError


@verb_of(cluster, "check")
def check(
    study: StudyFile = Path("config/config.yaml"),
    profile: Annotated[Path, typer.Option(metavar="DIR", help="How jobs are sent.")] = Path("profiles/slurm"),
    results: Annotated[Path | None, typer.Option(metavar="DIR", help="In place of the study's results folder.")] = None,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Send no test job.")] = False,
    json: Json = False,
) -> None:
    """Before jobs are sent: could they start, is there room, do nodes see it.

    Example: rlstride cluster check --study config/studies/grid.yaml --profile profiles/slurm
    """
    from rlstride.cluster.check import check_cluster, read_profile
    from rlstride.study.load import load_study

    found = load_study(study)
    if results:
        found = replace(found, spec=found.spec.model_copy(update={"results": str(results)}))
    readiness = check_cluster(found, read_profile(profile), probe=not no_probe)
    if json:
        show([{"facts": readiness.facts, "problems": readiness.problems}], "", as_json=True)
    else:
        print("\n".join([*readiness.facts, *(f"problem: {problem}" for problem in readiness.problems)]))
    if readiness.problems:
        raise WorkError(f"{study}: problems found: {len(readiness.problems)}")


@verb_of(cluster, "orphans")
def orphans(
    results: Results,
    wait: Annotated[bool, typer.Option("--wait", help="For those that run; cancel those that are queued.")] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="All, also those of a run that began on another machine.")
    ] = False,
    json: Json = False,
) -> None:
    """List the jobs that a killed Snakemake left, wait for them or end them.

    Example: rlstride cluster orphans results/grid --wait
    """
    if wait and cancel:
        raise RequestError("give --wait or --cancel, not both")
    from rlstride.cluster.orphans import await_orphans, end_orphans, orphans

    if wait:
        await_orphans(results)
    elif cancel:
        end_orphans(results, elsewhere=True)
    left = sorted(orphans(results).items())
    if json:
        show([{"job": job, "state": state.lower()} for job, state in left], "", as_json=True)
        return
    print("\n".join(f"job {job}: {state.lower()}" for job, state in left) or "none")

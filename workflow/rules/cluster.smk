# Needs: nothing.
# Makes: what jobs ask a cluster for, and what is done there before the first one is sent; no rule.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from rlstride.cluster.orphans import announced_run, end_orphans, note_run
from rlstride.errors import RlstrideError
from rlstride.budget.requests import job_request

# Slurm's commands that wait for a controller that is away come first; those of profiles/kubernetes have names of their own.
HERE = os.path.abspath(workflow.current_basedir.get_path_or_uri(secret_free=True))
COMMANDS = [str(Path(HERE).parents[1] / "profiles" / name / "bin") for name in ("slurm", "kubernetes")]
os.environ.update(PATH=os.pathsep.join([*COMMANDS, os.environ.get("PATH", os.defpath)]))


def requested(rule, resource):
    """What jobs of a rule ask for, by what their cell costs; more at every further attempt."""

    def of_job(wildcards, attempt=1):
        return getattr(job_request(STUDY, rule, model_of(wildcards), wildcards.get("algorithm"), attempt), resource)

    return of_job


def model_of(wildcards):
    """The study's model that a job is about: of a cell, or the one whose base or source it makes."""
    if "model" in wildcards.keys():
        return wildcards.model
    name, folders = (wildcards.base, BASES) if "base" in wildcards.keys() else (wildcards.source, SOURCES)
    return next(model for folder, model in folders.items() if Path(folder).name == name)


def settle_cluster(logs):
    """On Slurm: ends the jobs that a killed run of this study left, and notes this run's id for the next one."""
    run = announced_run(logs)
    if run is None:
        return
    try:
        end_orphans(PATHS.root, say=lambda text: print(text, file=sys.stderr, flush=True))
        note_run(PATHS.root, run)
    except RlstrideError as error:
        raise WorkflowError(str(error))

"""Jobs that a killed Snakemake left: found by the run id that names them, and ended before anything new is sent.

The Slurm executor gives every run an id, and every job that id for a name. A study's results folder keeps the ids of
the runs that worked on it, and whose processes they were. What is still queued or running under the id of a run that
has ended belongs to nobody: left alone, it would write the same files as the job that is sent in its place. A run that
still goes on, beside this one on the same machine, keeps its jobs.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rlstride.atomic_files import write_text
from rlstride.cluster.slurm import SlurmError, cancel, jobs_of_runs
from rlstride.errors import WorkError
from rlstride.training.lease import Holder

_LOOK_SECONDS = 2.0
_LONGEST_END_SECONDS = 600.0  # from scancel to the end: a large model saves before it goes
_ANNOUNCED = re.compile(r"SLURM run ID: (\S+)")


def ended_runs(results: Path) -> list[str]:
    """The ids of the runs that have sent jobs for a study, without those whose Snakemake is seen to go on."""
    return [run for run, holder in _noted(results) if not holder.is_here() or holder.has_ended()]


def runs_elsewhere(results: Path) -> dict[str, str]:
    """The machines of noted runs of which nothing can be known here, by id: another login node's."""
    here = Holder.here().host
    return {run: holder.host for run, holder in _noted(results) if not holder.is_here() and holder.host != here}


def announced_run(logs: Sequence[str]) -> str | None:
    """The id that the Slurm executor has written into Snakemake's logs; None where another executor runs."""
    texts = [Path(log).read_text(encoding="utf-8", errors="replace") for log in logs]
    found = [run for text in texts for run in _ANNOUNCED.findall(text)]
    return found[-1] if found else None


def note_run(results: Path, run: str) -> None:
    """Adds the id of this process's run to those of a study. Ended runs, whose jobs must be gone, are forgotten."""
    going_on = [(known, holder) for known, holder in _noted(results) if known not in ended_runs(results)]
    entries = [{"run": known, **asdict(holder)} for known, holder in [*going_on, (run, Holder.here())]]
    write_text(_file(results), json.dumps(entries, indent=1))


def orphans(results: Path) -> dict[str, str]:
    """The state of each job of a study's ended runs that is queued or running, by its number."""
    return jobs_of_runs(ended_runs(results))


def end_orphans(results: Path, say: Callable[[str], None] = print, *, elsewhere: bool = False) -> list[str]:
    """Cancels the jobs that earlier runs of a study left, and waits until they are gone. Returns their numbers.

    A training that is cancelled saves its state first, and the job sent in its place goes on from there.

    Args:
        results: the study's folder.
        say: tells a person.
        elsewhere: also those of runs that began on another machine, and may go on there.

    Raises:
        WorkError: Slurm does not answer, a job does not end within ten minutes, or its run may go on elsewhere.
    """
    left = orphans(results)
    if not left:
        return []
    for run, host in () if elsewhere else runs_elsewhere(results).items():
        if jobs := jobs_of_runs([run]):
            raise WorkError(
                f"{results}: {_listed(jobs)} of a run that began on {host}, and may go on there; go on there too, or "
                f"end them: rlstride cluster orphans {results} --cancel"
            )
    say(f"{results}: ends {_listed(left)} that an earlier run left: {_counted(list(left.values()))}")
    cancel(sorted(left))
    return _wait_until_gone(results, left, _LONGEST_END_SECONDS)


def await_orphans(results: Path, say: Callable[[str], None] = print) -> list[str]:
    """Waits for the running jobs that earlier runs of a study left, and cancels the queued ones. Returns their numbers.

    Raises:
        WorkError: Slurm does not answer.
    """
    left = orphans(results)
    if not left:
        return []
    waiting = sorted(job for job, state in left.items() if state == "PENDING")
    say(f"{results}: waits for {_listed(left)} of earlier runs; {len(waiting)} of them, still queued, are cancelled")
    cancel(waiting)
    return _wait_until_gone(results, left, None)


def _wait_until_gone(results: Path, left: dict[str, str], longest: float | None) -> list[str]:
    began = time.monotonic()
    while True:
        try:
            still = orphans(results)
        except SlurmError:  # a controller that restarts: asked again
            if longest is None or time.monotonic() - began < longest:
                time.sleep(_LOOK_SECONDS)
                continue
            raise
        if not still:
            return sorted(left)
        if longest is not None and time.monotonic() - began > longest:
            raise WorkError(f"{results}: {_listed(still)} of an earlier run did not end; look with squeue, end by hand")
        time.sleep(_LOOK_SECONDS)


def _noted(results: Path) -> list[tuple[str, Holder]]:
    if not _file(results).is_file():
        return []
    entries = json.loads(_file(results).read_text(encoding="utf-8"))
    return [(entry.pop("run"), Holder(**entry)) for entry in entries]


def _file(results: Path) -> Path:
    return results / "cluster-runs.json"


def _listed(jobs: dict[str, str]) -> str:
    return f"{len(jobs)} job{'s' if len(jobs) > 1 else ''} ({', '.join(sorted(jobs))})"


def _counted(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state)} {state.lower()}" for state in sorted(set(states)))

"""Slurm's own commands, asked and read: partitions and nodes, accounts, and jobs by name."""

import getpass
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from rlstride.errors import WorkError

_LONGEST_ANSWER = 60.0  # seconds
_GONE = ("down", "drain", "fail", "maint", "unk", "inval", "power_down", "future")


class SlurmError(WorkError):
    """A command of Slurm is missing, failed, or did not answer."""


@dataclass(frozen=True)
class Node:
    """A node, as one of its partitions sees it.

    Attributes:
        name: its name.
        state: as sinfo has it, such as idle, mixed or down.
        cpus: all of them, used or not.
        mem_mb: likewise.
        gpus: by model; the model is empty where the cluster does not say.
    """

    name: str
    state: str
    cpus: int
    mem_mb: int
    gpus: dict[str, int]

    @property
    def works(self) -> bool:
        """Whether jobs may start there, now or when others have ended."""
        return not self.state.lower().startswith(_GONE)

    def gpus_of(self, model: str | None) -> int:
        """How many GPUs of a model it has, or of any where none is named."""
        return sum(number for name, number in self.gpus.items() if model is None or name == model)


@dataclass(frozen=True)
class Partition:
    """A partition.

    Attributes:
        name: its name.
        is_default: whether jobs that name none go there.
        is_up: whether it takes jobs.
        minutes: its time limit; None without one.
        nodes: its nodes.
    """

    name: str
    is_default: bool
    is_up: bool
    minutes: int | None
    nodes: tuple[Node, ...]


def ask(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
        SlurmError: it is missing, failed, or took more than a minute.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_ANSWER)
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]}: there is no such command; this is no login node of a Slurm cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: no answer in {_LONGEST_ANSWER:.0f} s") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise SlurmError(f"{command[0]}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def partitions() -> list[Partition]:
    """Every partition with its nodes, as sinfo has them."""
    rows = [line.split("|") for line in ask("sinfo", "-h", "-N", "-o", "%P|%a|%l|%N|%T|%c|%m|%G").splitlines()]
    found: dict[str, Partition] = {}
    for title, available, limit, node, state, cpus, memory, gres in rows:
        name = title.rstrip("*")
        known = found.get(name) or Partition(name, title.endswith("*"), available == "up", minutes_of(limit), ())
        made = Node(node, state, _leading_number(cpus), _leading_number(memory), gpus_of(gres))
        found[name] = Partition(name, known.is_default, known.is_up, known.minutes, (*known.nodes, made))
    return list(found.values())


def accounts() -> list[str]:
    """The accounts that this user may charge, as slurmdbd has them."""
    listed = ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=account")
    return sorted({line.strip() for line in listed.splitlines() if line.strip()})


def jobs_of_runs(runs: Sequence[str]) -> dict[str, str]:
    """The state of every job that is queued or running and has one of these names, by its number."""
    if not runs:
        return {}
    listed = ask("squeue", "-h", "--name", ",".join(runs), "-o", "%i|%T")
    return dict(line.split("|", 1) for line in listed.splitlines() if "|" in line)


def cancel(jobs: Sequence[str]) -> None:
    """Ends jobs: SIGTERM, and SIGKILL where that is not heeded in the cluster's KillWait."""
    if jobs:
        ask("scancel", *jobs)


def minutes_of(limit: str) -> int | None:
    """Slurm's [days-]hours:minutes:seconds or minutes:seconds in whole minutes, rounded up; None for no limit."""
    if limit in ("infinite", "UNLIMITED", "n/a", "NOT_SET"):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    hours, minutes, seconds = ([0] * 3 + parts)[-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)


def gpus_of(gres: str) -> dict[str, int]:
    """GPUs by model in a node's generic resources, such as gpu:a100:2(S:0-1),gpu:h100:4."""
    found: dict[str, int] = {}
    for model, number in re.findall(r"(?:^|,)gpu(?::([A-Za-z][\w.\-]*))?(?::(\d+))?(?=[(,]|$)", gres):
        found[model] = found.get(model, 0) + int(number or 1)
    return found


def _leading_number(text: str) -> int:
    """64 of "64+", which sinfo prints of nodes that differ."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0

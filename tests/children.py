"""Processes that fork from one which has imported the trainers: a run alone, or the ranks of one run, as launched.

A kill falls into the training, not into imports; and a start costs no ten seconds of a core.
"""

import functools
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LONGEST_WAIT = 600.0
_PRELOADED = ("launch", "jump", "grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "dapo", "gspo", "sft", "distillation")


@functools.cache
def spawner() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(f"rlstride.training.{name}" for name in _PRELOADED), "rlstride.evaluation.score"])
    return context


def start(verb: Sequence[str | Path]) -> BaseProcess:
    """A verb of the command line, in a process with its exit status."""
    child = spawner().Process(target=_verb, args=([str(word) for word in verb],))
    child.start()
    return child


def _verb(words: list[str]) -> None:
    from rlstride.cli import main

    raise SystemExit(main(words))


@dataclass(frozen=True)
class Launched:
    """The processes of one run, and what each of them prints."""

    members: list[BaseProcess]
    logs: list[Path]

    def statuses(self) -> list[int | None]:
        deadline = time.monotonic() + LONGEST_WAIT
        for member in self.members:
            member.join(max(0.0, deadline - time.monotonic()))
        found = [member.exitcode for member in self.members]
        self.kill()
        return found

    def kill(self) -> None:
        for member in self.members:
            member.kill()
            member.join()

    def said(self, text: str) -> int:
        """How often all processes together printed something."""
        return sum(log.read_text().count(text) for log in self.logs)


def launch(
    folder: Path, processes: int, function: Callable[..., object], *arguments: Any, **environment: str
) -> Launched:
    """Calls a function in several processes, as a launcher starts them; their logs are in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", **environment}
    members, logs = [], []
    for rank in range(processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        own = shared | {name: str(value) for name, value in places.items()}
        logs.append(folder / f"{port}-{rank}.log")
        member = spawner().Process(target=_member, args=(own, logs[-1], function, arguments))
        member.start()
        members.append(member)
    return Launched(members, logs)


def _member(
    environment: dict[str, str], log: Path, function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    raise SystemExit(function(*arguments))

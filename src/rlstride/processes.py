"""The processes of one run, launched together by torchrun or accelerate: they train in step, and one of them writes.

Alone, a process is the main one, and nothing here waits.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import Tensor

from rlstride.errors import RlstrideError

T = TypeVar("T")
_LONGEST_WAIT = timedelta(hours=1)  # of the others, while the main process writes the weights of a large model


def launch_processes(number: int, verb: Sequence[str]) -> NoReturn:
    """Becomes torch's launcher of so many processes on this machine, each of which runs a verb of the command line.

    They find each other on a port that is free, so that two jobs may share a machine.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    os.execv(sys.executable, [*launcher, "-m", "rlstride.cli", *verb])


def join_processes(device: str) -> PartialState:
    """How many processes a run was launched in, and which of them this one is.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    # Without a GPU, processes find each other all the same, to say so once.
    return PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_LONGEST_WAIT)


@contextmanager
def failing_together() -> Iterator[None]:
    """Has all processes wait for each other at the end of a block, and fail where one of them has failed in it.

    The main process alone says why: processes that find the same fault speak once, and none leaves while another still
    writes. This goes for the errors of this library, which must either be raised by all processes at the same place,
    or in a block without any other waiting; an error of another kind ends its process at once, and the launcher the
    others.

    Raises:
        RlstrideError: that of the first process that has one, in the main process.
        SystemExit: with the status of that error, in every other process.
    """
    error = None
    try:
        yield
    except RlstrideError as raised:
        error = raised
    first = next((found for found in gather_object([error]) if found is not None), None)
    if first is None:
        return
    if PartialState().is_main_process:
        raise first
    raise SystemExit(first.exit_status)


def from_main_process(work: Callable[[], T]) -> T:
    """What ``work`` returns in the main process, which alone does it, while the others wait."""
    results = [work() if PartialState().is_main_process else None]
    broadcast_object_list(results)
    result: T = results[0]  # type: ignore[assignment]  # the main process's
    return result


@torch.no_grad()
def as_in_main_process(tensors: Iterable[Tensor]) -> None:
    """Gives tensors the main process's values, in place: the same bits everywhere. All processes must call it."""
    if PartialState().num_processes > 1:
        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach().clone()))


def in_any_process(flag: bool) -> bool:
    """Whether something holds in one process at least. All of them must ask."""
    return bool(reduce(torch.tensor(int(flag), device=PartialState().device), reduction="sum"))

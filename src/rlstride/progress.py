"""What is shown of long work: a bar on a terminal, a plain line now and then in a log; libraries can be hushed."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0
_hushed = False


def hush(hushed: bool) -> None:
    """Whether nothing is shown of work from here on."""
    global _hushed
    _hushed = hushed


def track(
    iterable: Iterable[Item], description: str, total: int | None = None, size: Callable[[Item], int] | None = None
) -> Iterator[Item]:
    """Yields the items of ``iterable`` and shows on standard error how many are done, and how long the rest will take.

    Args:
        iterable: what is worked through.
        description: a few words, such as ``spectra``.
        total: the number of items, where ``iterable`` does not know its length.
        size: the bytes that an item stands for: the speed is shown, and the time left is told by them.
    """
    if _hushed:
        yield from iterable
        return
    sizes = None
    if size is not None:
        iterable = list(iterable)
        sizes = [size(item) for item in iterable]
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from _bar(iterable, description, total, sizes)
    else:
        yield from _lines(iterable, description, total, sizes)


@contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """Without what a library's logger has to say below an error."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _bar(iterable: Iterable[Item], description: str, total: int | None, sizes: list[int] | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    count = [MofNCompleteColumn()] if sizes is None else [TextColumn("{task.fields[item]}"), SpeedColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total if sizes is None else sum(sizes), item=f"0/{total}")
        for done, item in enumerate(iterable, start=1):
            yield item
            progress.update(task, advance=1 if sizes is None else sizes[done - 1], item=f"{done}/{total}")


def _lines(iterable: Iterable[Item], description: str, total: int | None, sizes: list[int] | None) -> Iterator[Item]:
    of = "" if total is None else f" of {total}"
    everything = total if sizes is None else sum(sizes)
    started = shown = time.monotonic()
    done = worth = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        worth += 1 if sizes is None else sizes[done - 1]
        if time.monotonic() - shown >= _SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            seconds = shown - started
            speed = "" if sizes is None else f", {worth / seconds / 1e6:.0f} MB/s"
            left = "" if not everything or not worth else f", {seconds * (everything - worth) / worth:.0f} s left"
            print(f"{description}: {done}{of}, {seconds:.0f} s{speed}{left}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    speed = "" if sizes is None else f", {worth / max(seconds, 1e-9) / 1e6:.0f} MB/s"
    print(f"{description}: {done}{of} done in {seconds:.1f} s{speed}", file=sys.stderr, flush=True)

"""What is shown of long work: a bar on a terminal, a plain line now and then in a log; libraries can be hushed."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yields the items of ``iterable`` and shows on standard error how many are done.

    Args:
        iterable: what is worked through.
        description: a few words, such as ``spectra``.
        total: the number of items, where ``iterable`` does not know its length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from _bar(iterable, description, total)
    else:
        yield from _lines(iterable, description, total)


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


def _bar(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(iterable, description=description, total=total, console=Console(stderr=True), transient=True)


def _lines(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    of = "" if total is None else f" of {total}"
    started = shown = time.monotonic()
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        if time.monotonic() - shown >= _SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            print(f"{description}: {done}{of}, {shown - started:.0f} s", file=sys.stderr, flush=True)
    print(f"{description}: {done}{of} done in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

"""The ledger: what each job did and what it cost, one JSON line each, in a file that only this job writes."""

import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@contextmanager
def ledger_entry(folder: Path, stage: str, **about: Any) -> Iterator[dict[str, Any]]:
    """Appends one line to ``folder/stage.jsonl`` when the block ends, also when it fails.

    Args:
        folder: the ledger's folder.
        stage: the verb that works, such as ``train``: names the file.
        about: what is known beforehand (cell, step, method, ...).

    Yields:
        a dict for what becomes known while working; it is written with the rest.
    """
    started_at, started, found = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic(), dict[str, Any]()
    status = "failed"
    try:
        yield found
        status = "done"
    finally:
        entry = {
            "stage": stage,
            "status": status,
            "started": started_at,
            "seconds": round(time.monotonic() - started, 3),
            "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            **about,
            **found,
        }
        append(folder / f"{stage}.jsonl", entry)


def append(file: Path, entry: dict[str, Any]) -> None:
    """Adds a line in one write, so that a reader never sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(entry, sort_keys=True) + "\n").encode())
    finally:
        os.close(descriptor)


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Every entry of a ledger's folder, by time of start; a torn last line (a kill while writing) is passed over."""
    entries = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return sorted(entries, key=lambda entry: str(entry["started"]))


def last_done(entries: Sequence[dict[str, Any]], stage: str, **about: Any) -> dict[str, Any] | None:
    """The last entry of a stage that was done and says this of itself; a None asks for one that does not say it."""
    asked = {"stage": stage, "status": "done", **about}
    found = [entry for entry in entries if all(entry.get(name) == value for name, value in asked.items())]
    return found[-1] if found else None

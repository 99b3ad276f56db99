"""What tests do to the long training of a cluster's study, and what it must end with all the same."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cluster import wait_until
from study import TABLE, TRAJECTORY, Submission

from rlstride.training.callbacks import last_complete_checkpoint, step_of
from rlstride.trajectory.manifest import read_manifest


def weights(folder: Path) -> dict[int, dict[str, str]]:
    return {record.step: record.sha256 for record in read_manifest(folder / TRAJECTORY).steps}


def ends_well(sent: Submission, folder: Path, trained: Path) -> bool:
    assert sent.wait() == 0, sent.said
    assert (folder / TABLE).is_file()
    assert not (folder / TRAJECTORY.with_name("training")).exists()  # no state, and no lease, is left
    return weights(folder) == weights(trained)


def frozen(lone: Path, step: int) -> int:
    """Stops the training at hand, once it has saved a step, until it is told to end: it cannot be done before."""
    state = lone / TRAJECTORY.with_name("training")

    def is_saved() -> bool:  # a moment after it is kept
        checkpoint = last_complete_checkpoint(state)
        return checkpoint is not None and step_of(checkpoint) >= step

    wait_until(is_saved)
    process = json.loads((state / "lease.json").read_text())["pid"]
    os.kill(process, signal.SIGSTOP)

    def go_on_when_told() -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            while not is_told_to_end(process):
                time.sleep(0.1)
            os.kill(process, signal.SIGCONT)

    threading.Thread(target=go_on_when_told, daemon=True).start()
    return process


def is_told_to_end(process: int) -> bool:
    """Whether a stopped process has a SIGTERM waiting for it."""
    status = Path(f"/proc/{process}/status").read_text()
    waiting = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, flags=re.MULTILINE)
    return any(int(signals, 16) >> (signal.SIGTERM - 1) & 1 for signals in waiting)


@contextlib.contextmanager
def slowed(process: int) -> Iterator[None]:
    """Has a process run for a tenth of the time only, so that its lease stays fresh, while the block lasts."""
    over = threading.Event()

    def stop_and_go() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                for number, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
                    os.kill(process, number)
                    over.wait(seconds)
            os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

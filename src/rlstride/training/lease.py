"""The lease of a training folder: one writer at a time, wherever it runs.

A job that is thought dead may still write: a cluster requeues a job whose node it has lost sight of, and a scheduler
that was killed submits again what goes on. So a run holds a lease, a file beside its checkpoints that it touches every
few seconds; who finds it fresh stays away, and who finds it stale takes over. Ages are differences of two times that
the folder's own file system gave, so that the clocks of nodes need not agree.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rlstride.errors import WorkError

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # twelve beats: a file system may hang, and a node be slow
_SETTLE_SECONDS = 1.0  # in which two that take over at once see each other


@dataclass(frozen=True)
class Holder:
    """Who writes.

    Attributes:
        token: of this lease alone.
        host: of the process.
        pid: on that host.
        boot: which start of which machine, and which of its process number spaces; empty where unknown.
        started: when the process started, in ticks since then: numbers are used again.
        job: the cluster's number of the job; empty without one.
        since: when the lease was taken, UTC.
    """

    token: str
    host: str
    pid: int
    boot: str
    started: str
    job: str
    since: str

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        since, me = datetime.now(UTC).isoformat(timespec="seconds"), os.getpid()
        job = os.environ.get("SLURM_JOB_ID", "")
        return cls(uuid.uuid4().hex, socket.gethostname(), me, _boot(), _started(me), job, since)

    def is_here(self) -> bool:
        """Whether it is a process of this machine, whose end can be seen."""
        return self.boot == _boot() != ""

    def has_ended(self) -> bool:
        """Whether its process is known to have ended."""
        return self.is_here() and _started(self.pid) != self.started

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def lease(
    file: Path,
    *,
    patience: float = 0.0,
    beat: float = BEAT_SECONDS,
    stale: float = STALE_SECONDS,
    settle: float = _SETTLE_SECONDS,
) -> Iterator["Lease"]:
    """Holds a lease while the block runs; another one's must have ended, been released or gone stale.

    Of a holder on another machine, which may have died, it waits until the lease moves or goes stale.

    Args:
        file: the lease, in a folder that all writers share.
        patience: seconds to wait for a holder that is alive; on a cluster it may be about to end, as it was told to.
        beat: seconds between two touches.
        stale: age in seconds from which a lease counts as abandoned; many beats.
        settle: seconds in which a lease that was taken over is left alone, to see who else has taken it.

    Raises:
        WorkError: another process holds it.
    """
    me = Holder.here()
    _acquire(file, me, patience, stale, settle)
    held = Lease(file, me, beat)
    try:
        yield held
    finally:
        held.release()


class Lease:
    """A lease that is held, and kept fresh by a thread.

    Attributes:
        lost: whether another process has taken it over: this one has been thought dead, and must write no more.
    """

    def __init__(self, file: Path, me: Holder, beat: float) -> None:
        self._file, self._me, self._beat = file, me, beat
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="lease", daemon=True)
        self._thread.start()

    def is_ours(self) -> bool:
        """Whether nobody else has it: looked up now, where ``lost`` is as old as a beat."""
        holder = _read(self._file)
        return not self.lost and (holder is None or holder.token == self._me.token)

    def rest(self) -> None:
        """Touches the file no more: its folder may be removed."""
        self._ended.set()
        self._thread.join()

    def release(self) -> None:
        """Removes the file where it is this process's own."""
        self.rest()
        if _is_ours(self._file, self._me):
            self._file.unlink(missing_ok=True)

    def _keep_fresh(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                holder = _read(self._file)
                if holder is None:  # somebody tidied up: it is made again, where nobody else has been quicker
                    _create(self._file, self._me)
                elif holder.token != self._me.token:
                    self.lost = True
                    return
                os.utime(self._file)
            except OSError:  # a file system that hangs or is full: tried again at the next beat
                continue


def _acquire(file: Path, me: Holder, patience: float, stale: float, settle: float) -> None:
    began, seen, said = time.monotonic(), None, False
    while not _create(file, me):
        holder, age = _read(file), _age(file)
        if holder is None or age is None:  # released in between
            continue
        if age >= stale or holder.has_ended():
            print(f"{file}: of {holder}, who has stopped; taken over", flush=True)
            _take_over(file, me, settle)
            return
        now = (holder, _touched(file))
        is_alive = holder.is_here() or seen not in (None, now)
        if is_alive and time.monotonic() - began >= patience:
            raise WorkError(f"{file.parent}: {holder}, writes here; wait for it, or end it")
        if not said:
            longest = patience if is_alive else max(patience, stale)
            print(f"{file}: of {holder}; waits for it to end, up to {longest:.0f} s", flush=True)
        said, seen = True, seen if is_alive else now
        time.sleep(min(1.0, stale / 10))


def _create(file: Path, me: Holder) -> bool:
    """Makes the lease where there is none. A link is atomic on network file systems too, where O_EXCL may not be."""
    try:
        own = _written_beside(file, me)
        try:
            os.link(own, file)
        except FileExistsError:  # or an answer that was lost, to a link that was made
            return _is_ours(file, me)
        finally:
            own.unlink(missing_ok=True)
    except FileNotFoundError:  # a holder that is done removes the whole folder: looked at again
        return False
    except PermissionError:  # a file system without hard links
        return _create_exclusively(file, me)
    return True


def _create_exclusively(file: Path, me: Holder) -> bool:
    try:
        with file.open("x", encoding="utf-8") as stream:
            json.dump(asdict(me), stream)
    except FileExistsError:
        return False
    return True


def _take_over(file: Path, me: Holder, settle: float) -> None:
    _written_beside(file, me).replace(file)
    time.sleep(settle)
    if not _is_ours(file, me):
        raise WorkError(f"{file.parent}: {_read(file)} took over at the same moment; wait for it, or end it")


def _written_beside(file: Path, me: Holder) -> Path:
    own = file.with_name(f".{file.name}.{me.token}")
    file.parent.mkdir(parents=True, exist_ok=True)  # a holder that is done removes the folder
    own.write_text(json.dumps(asdict(me)), encoding="utf-8")
    return own


def _is_ours(file: Path, me: Holder) -> bool:
    holder = _read(file)
    return holder is not None and holder.token == me.token


def _read(file: Path) -> Holder | None:
    """Who holds it; None where nobody does."""
    try:
        return Holder(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError):
        return Holder("", "an unknown machine", 0, "", "", "", "an unknown time")


def _touched(file: Path) -> float | None:
    """When a file was touched, by the clock of its file system; None where it is gone."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return None


def _age(file: Path) -> float | None:
    """Seconds since a file was touched, by the clock of its file system; None where it is gone."""
    probe = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        touched = _touched(file)
        return None if touched is None else probe.stat().st_mtime - touched
    except FileNotFoundError:  # the whole folder is
        return None
    finally:
        probe.unlink(missing_ok=True)


def _started(process: int) -> str:
    """When a process of this machine started, in ticks; empty where there is none of that number."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return ""


def _boot() -> str:
    """Which start of which machine this is; containers on one machine share it, and their process numbers differ."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""

"""A process of its own for what may take too long, or whose results must not depend on the process that asks.

Graders parse, simplify and even evaluate whatever a model has written. They run here: a call that takes too long is
ended by ending the process, whatever it was doing and from whichever thread it was asked; the next call starts another.
Signals, as math-verify uses them, only work in a main thread.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe
from pkgutil import resolve_name
from typing import Any

from rlstride.errors import RequestError, WorkError

_ADDRESS_SPACE = 8 << 30  # bytes: 9**9**9 shall end in an error of the worker, not in the memory of the machine
_SECONDS_TO_START = 300.0  # libraries are imported; slow network drives are known
# The order of sets is the same in every process; one thread, as calls are short and many processes make them.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class LostCallError(WorkError):
    """A call took longer than it was given, or its process ended before it was done."""


class Worker:
    """A function in a process of its own, which is started by the first call and kept for those that follow.

    Args:
        make: MODULE:FUNCTION, called in the process with ``arguments``; what it returns is the function that serves.
        arguments: which can be pickled.
    """

    def __init__(self, make: str, *arguments: Any) -> None:
        self._make, self._arguments = make, arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self.lost = 0  # calls by judged()

    def call(self, *arguments: Any, seconds: float) -> Any:
        """The function's value for these arguments.

        Args:
            arguments: which can be pickled.
            seconds: that the call may take; the process is ended after them.

        Raises:
            LostCallError: it took longer, or the process ended, for want of memory, say.
            RequestError: the function refuses what it is given.
            WorkError: the function fails.
        """
        with self._lock:
            if self._connection is None:
                self._start()
            done, value = self._ask((seconds, arguments), seconds)
        return _value(done, value)

    def judged(self, *arguments: Any, seconds: float) -> Any:
        """As :meth:`call`, but None where a call is lost, which is counted, and said of the 1st, 2nd, 4th, 8th, ..."""
        try:
            return self.call(*arguments, seconds=seconds)
        except LostCallError as error:
            self.lost += 1
            if self.lost & (self.lost - 1) == 0:
                them = "1 completion counts" if self.lost == 1 else f"{self.lost} completions count"
                print(f"verifier: {them} as wrong so far, as judging was given up: {error}", file=sys.stderr)
            return None

    def start(self) -> None:
        """Starts the process, unless it runs: what is wrong with the arguments is said now.

        Raises:
            RequestError: they are refused.
        """
        with self._lock:
            if self._connection is None:
                self._start()

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def _start(self) -> None:
        own, its = Pipe()
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its.fileno())],
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _is_file(sys.stderr) else subprocess.DEVNULL,  # nothing of it is a result
        )
        its.close()
        self._connection = own
        try:
            _value(*self._ask((self._make, self._arguments), _SECONDS_TO_START))
        except BaseException:
            self.close()
            raise

    def _ask(self, request: Any, seconds: float) -> tuple[str, Any]:
        assert self._connection is not None
        try:
            self._connection.send(request)
            if self._connection.poll(seconds):
                done, value = self._connection.recv()
                return done, value
            why = f"it took more than {seconds:g} s"
        except (EOFError, OSError):
            why = "its process ended"  # for want of memory, say
        except BaseException:  # an interrupt: the answer would be taken for that to the next call
            self.close()
            raise
        self.close()
        return "lost", why


def _is_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _value(done: str, value: Any) -> Any:
    if done == "lost":
        raise LostCallError(value)
    if done == "refused":
        raise RequestError(value)
    if done == "failed":
        raise WorkError(value)
    return value


def _serve(descriptor: int) -> None:
    """What the process does: makes its function, then answers calls until the other side is gone."""
    connection = Connection(descriptor)
    _limit_memory()
    with contextlib.suppress(EOFError, OSError):
        make, arguments = connection.recv()
        try:
            function = resolve_name(make)(*arguments)
        except Exception as error:
            connection.send(_failure(error))
            return
        connection.send(("done", None))
        while True:
            seconds, arguments = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 10)  # ends it even where nobody is left to do so
            try:
                reply = ("done", function(*arguments))
            except Exception as error:
                reply = _failure(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(reply)


def _failure(error: Exception) -> tuple[str, str]:
    if isinstance(error, RequestError):
        return "refused", str(error)
    return "failed", f"{type(error).__name__}: {error}"


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = _ADDRESS_SPACE if most == resource.RLIM_INFINITY else min(_ADDRESS_SPACE, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

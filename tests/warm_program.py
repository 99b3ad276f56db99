"""A program of warm_start.py, which writes it beside a Python that starts it without the site's packages."""

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any


def pass_on(number: int, frame: Any) -> None:
    with suppress(ProcessLookupError):  # it has ended, and how is on its way
        os.kill(process, number)


with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(os.path.dirname(os.path.dirname(sys.argv[0])), "socket"))
    given = ascii((sys.argv, os.getcwd(), dict(os.environ))).encode()
    socket.send_fds(server, [len(given).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(given)
    answers = server.makefile()
    process = int(answers.readline())
    for passed_on in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(passed_on, pass_on)
    status = int(answers.readline())
if status < 0:
    with suppress(OSError):  # of SIGKILL, which has no handler
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)

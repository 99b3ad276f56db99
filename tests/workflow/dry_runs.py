"""Snakemake's own command line, in forks of one process that has imported it: most of a dry run's seconds are imports.

As a program, it reads requests from standard input, one a line in JSON, and answers each with its exit status.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAM = str(Path(sys.executable).parent / "snakemake")


def dry_run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``snakemake ARGUMENTS`` says in a folder, for requests that start no job."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        request = {"arguments": list(arguments), "folder": str(folder), "out": str(out), "err": str(err)}
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess([PROGRAM, *arguments], status, out.read_text(), err.read_text())


@functools.cache
def _server() -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    from snakemake.cli import main

    for line in sys.stdin:
        request = json.loads(line)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        for number, name in enumerate(("out", "err"), start=1):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["folder"])
        sys.argv = [PROGRAM, *request["arguments"]]
        main()


if __name__ == "__main__":
    _serve()

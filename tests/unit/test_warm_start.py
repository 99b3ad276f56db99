"""Whoever starts the program of warm_start.py has started `rlstride`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warm_start import warm_programs


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | changes


def said(program: Path, *arguments: str, folder: Path, **changes: str) -> tuple[int, str, str]:
    done = subprocess.run([program, *arguments], cwd=folder, env=environment(**changes), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("list", "methods"), ("check", "--study", "nowhere.yaml"), ("--no-such-flag",), ("--version",), ()],
    ids=["done", "refused", "misread", "version", "nothing"],
)
def test_it_says_what_the_program_says_and_ends_as_it_ends(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    real = Path(sys.executable).parent / "rlstride"
    assert said(warm_programs() / "rlstride", *arguments, folder=tmp_path) == said(real, *arguments, folder=tmp_path)


def with_verb_that_waits(folder: Path) -> Path:
    """A package named rlstride, whose command line says who it is and waits."""
    (folder / "rlstride").mkdir()
    (folder / "rlstride" / "__init__.py").touch()
    code = "import os, time\ndef main():\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
    (folder / "rlstride" / "cli.py").write_text(code)
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_its_process_and_it_ends_by_it(tmp_path: Path, number: signal.Signals) -> None:
    paths = environment(PYTHONPATH=str(with_verb_that_waits(tmp_path)))
    with subprocess.Popen([warm_programs() / "rlstride"], env=paths, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        process = Path("/proc", program.stdout.readline().strip())
        assert process.exists()
        program.send_signal(number)
        assert program.wait(60) == -number
    deadline = time.monotonic() + 60
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.exists()


def test_it_refuses_an_environment_that_comes_too_late(tmp_path: Path) -> None:
    status, _, error = said(
        warm_programs() / "rlstride", "list", "methods", folder=tmp_path, HF_HUB_OFFLINE="0", HF_HOME="x"
    )
    assert status == 1
    assert error.endswith("with other values of HF_HOME, HF_HUB_OFFLINE\n")

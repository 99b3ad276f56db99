"""`rlstride`, `snakemake` and `python -c` without their seconds of imports: forks of a server that has imported torch.

For tests of what verbs do in a pipeline or a script; not of a process itself: its memory, or its start. A program
(warm_program.py) gives its arguments, folder, environment and streams to a process that the server forks, and that
imports rlstride anew. It passes signals on to it, ends as it ends, and takes it along where it is killed.

Run as a program itself, this is the server: `python -P warm_start.py FOLDER LIFE FIRST` listens in a folder of its
own, and ends, with the folder, when the process LIFE ends.
"""

import ast
import fcntl
import gc
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from contextlib import suppress
from importlib import import_module
from pathlib import Path

PROGRAMS = {"rlstride": "rlstride.cli", "snakemake": "snakemake.cli"}  # and the module of each, whose main it calls
CODE = "python-c"  # as `python -c`
PACKAGES = (
    *(
        "torch.distributed.tensor",
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen3.modeling_qwen3",
    ),
    *("datasets", "peft", "accelerate", "math_verify", "lm_eval.evaluator", "lm_eval.models.huggingface", "pandas"),
    *("trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer", "trl.trainer.sft_trainer", "scipy.stats", "jinja2"),
    *("sklearn.cross_decomposition", "matplotlib.pyplot", "snakemake.report", "smart_open"),
    *("mlflow.tracking.client", "mlflow.store.tracking.sqlalchemy_store"),
)
# What these read when they are imported: no verb can have another value than the server.
READ_EARLY = ("HF_", "TRANSFORMERS_", "LD_PRELOAD", "OMP_NUM_THREADS")
_LONGEST_WAIT = 600.0


def warm_programs(kind: str = "warm", first: str = "", **variables: str) -> Path:
    """The programs' folder in a virtual environment of their own. All workers of a test run share one server of a kind.

    Args:
        kind: another one where packages are imported after something else, or with other variables.
        first: a module; its `plug_in` comes before the packages.
        variables: added to the environment.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"rlstride-{kind}-{run}"
    with folder.with_suffix(".lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not (folder / "listens").exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a failed start left
            _start(folder, first, variables)
    return folder / "bin"


def _start(folder: Path, first: str, variables: dict[str, str]) -> None:
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    packages.rmdir()
    packages.symlink_to(sysconfig.get_path("purelib"))
    client = Path(__file__).with_name("warm_program.py").read_text(encoding="utf-8")
    for name in (*PROGRAMS, CODE):
        (folder / "bin" / name).write_text(f"#!{folder}/bin/python -SE\n{client}", encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    life = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    threads = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    environment = os.environ | variables | threads
    command = [str(folder / "bin" / "python"), "-P", __file__, str(folder), str(life), first]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + _LONGEST_WAIT
    while not (folder / "listens").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{folder}: no server of warm programs")
        time.sleep(0.05)


def serve(folder: Path, life: int, first: str) -> None:
    """Forks a process for each program, and one that stays with it to its end."""
    own = dict(os.environ)
    os.environ |= {"TQDM_DISABLE": "1", "DISABLE_MLFLOW_INTEGRATION": "TRUE"}  # as rlstride does before it imports
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    if first:
        import_module(first).plug_in()
    for package in PACKAGES:
        import_module(package)
    import_module("snakemake.cli").get_argument_parser()  # imports its plugins
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has no other thread than the one that made it"
    ended = os.pidfd_open(life)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        (folder / "listens").touch()
        while ended not in select.select([listener, ended], [], [])[0]:
            program, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return stay_with(program, own)
            program.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    shutil.rmtree(folder)
    folder.with_suffix(".lock").unlink()


def stay_with(program: socket.socket, own: dict[str, str]) -> None:
    """Tells a program the number of its process, then how that ended. Kills it where the program is gone."""
    size, streams, _, _ = socket.recv_fds(program, 4, 3)
    given = program.makefile("rb").read(int.from_bytes(size, "big"))
    process = os.fork()
    if process == 0:
        program.close()
        return become(*ast.literal_eval(given.decode()), streams, own)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(process)
    program.sendall(f"{process}\n".encode())
    if ended not in select.select([ended, program], [], [])[0]:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with suppress(BrokenPipeError):  # the program is gone
        program.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(words: list[str], folder: str, environment: dict[str, str], streams: list[int], own: dict[str, str]) -> None:
    """Makes this process the program's. What imports have put into the environment stays, as in any process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    early = {name for name in environment | own if name.startswith(READ_EARLY)}
    if other := {name for name in early if environment.get(name) not in (own.get(name), os.environ.get(name))}:
        raise SystemExit(f"{words[0]}: imported its packages with other values of {', '.join(sorted(other))}")
    os.chdir(folder)
    imported = dict(os.environ.items() - own.items())
    os.environ.clear()
    os.environ.update(imported | environment)
    sys.argv = words
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    name = Path(words[0]).name
    if name == CODE:
        del sys.argv[:1]
        raise SystemExit(exec(sys.argv[0], {"__name__": "__main__"}))
    raise SystemExit(import_module(PROGRAMS[name]).main())


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

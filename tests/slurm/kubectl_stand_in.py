"""kubectl and the cluster behind it, for tests: a Job's command runs here, as a process in a session of its own.

What the project's commands use of it, no more: create -f -, get job -o jsonpath of conditions, delete job. As on a
cluster, only the first process of a job is sent SIGTERM, and all are killed after the grace. The folder
KUBECTL_STAND_IN keeps the manifest of each job that was ever made, and what became of it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

JOBS = Path(os.environ["KUBECTL_STAND_IN"])


def main(verb: str, *arguments: str) -> int:
    if verb == "create":
        return create(yaml.safe_load(sys.stdin))
    if verb == "get":
        return get(arguments[1])
    if verb == "delete":
        for name in arguments:
            if not name.startswith("-") and (JOBS / name).is_dir():
                (JOBS / name / "deleted").touch()
        return 0
    return run(arguments[0])  # the verb `run` is this file's own


def create(manifest: dict[str, object]) -> int:
    name = manifest["metadata"]["name"]  # type: ignore[index]
    (JOBS / name).mkdir(parents=True)
    (JOBS / name / "manifest.json").write_text(json.dumps(manifest))
    with (JOBS / name / "log").open("w") as log:
        keeper = [sys.executable, __file__, "run", name]
        subprocess.Popen(keeper, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    print(f"job.batch/{name}")
    return 0


def run(name: str) -> int:
    """Runs a job's pod to its end, and writes down the condition."""
    spec = json.loads((JOBS / name / "manifest.json").read_text())["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    with subprocess.Popen(container["command"], cwd=container["workingDir"], start_new_session=True) as first:
        (JOBS / name / "pid").write_text(str(first.pid))
        asked, ended = time.monotonic() + spec["activeDeadlineSeconds"], None
        while first.poll() is None:
            time.sleep(0.1)
            if ended is None and (time.monotonic() > asked or (JOBS / name / "deleted").exists()):
                ended = time.monotonic()
                first.send_signal(signal.SIGTERM)
            if ended is not None and time.monotonic() > ended + pod["terminationGracePeriodSeconds"]:
                os.killpg(first.pid, signal.SIGKILL)
        (JOBS / name / "condition").write_text("Complete" if first.returncode == 0 and ended is None else "Failed")
    return 0


def get(name: str) -> int:
    condition, deleted = JOBS / name / "condition", JOBS / name / "deleted"
    if not (JOBS / name).is_dir() or (deleted.exists() and condition.exists()):  # it is gone when its pods are
        print(f'Error from server (NotFound): jobs.batch "{name}" not found', file=sys.stderr)
        return 1
    print(condition.read_text() if condition.exists() else "", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

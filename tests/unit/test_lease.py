"""One writer at a time: a second run is refused, a dead one's place is taken, and who was thought dead stops."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlstride.errors import WorkError
from rlstride.training.lease import Holder, Lease, lease

QUICK: dict[str, Any] = {"beat": 0.05, "stale": 0.5, "settle": 0.1}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "training" / "lease.json"


def write_lease(file: Path, **holder: Any) -> None:
    """A lease as another process would have left it."""
    known = {"token": "other", "host": "node7", "pid": 12, "boot": "another boot", "started": "5"}
    known |= {"job": "431", "since": "noon"}
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(known | holder), encoding="utf-8")


def test_a_lease_is_there_while_it_is_held_and_gone_afterwards(file: Path) -> None:
    with lease(file, **QUICK):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert list(file.parent.iterdir()) == []


def test_a_second_writer_on_the_same_machine_is_refused_at_once_and_told_of_whom(file: Path) -> None:
    with lease(file, beat=0.05, stale=60):
        began = time.monotonic()
        words = rf"process {os.getpid()} on .*, writes here; wait for it, or end it"
        with pytest.raises(WorkError, match=words), lease(file, stale=60):
            pass
        assert time.monotonic() - began < 5
        assert json.loads(file.read_text())["pid"] == os.getpid()  # the refused one leaves it alone


def test_the_place_of_a_process_that_was_killed_on_this_machine_is_taken_at_once(file: Path) -> None:
    program = f"""
import os, pathlib
from rlstride.training.lease import lease
with lease(pathlib.Path({str(file)!r})):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert file.is_file()
    began = time.monotonic()
    with lease(file, stale=60, settle=0.1):
        assert time.monotonic() - began < 5
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_holder_elsewhere_that_still_beats_is_left_alone(file: Path) -> None:
    write_lease(file)
    done = threading.Event()

    def beats() -> None:
        while not done.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        words = "job 431, process 12 on node7, since noon, writes here"
        with pytest.raises(WorkError, match=words), lease(file, beat=0.05, stale=20, settle=0.1):
            pass
    finally:
        done.set()
        thread.join()


def test_a_holder_elsewhere_that_fell_silent_is_waited_for_and_then_replaced(file: Path) -> None:
    write_lease(file)
    touched = file.stat().st_mtime
    with lease(file, **QUICK):
        assert time.time() - touched >= QUICK["stale"] - 0.05  # files are dated by a coarser clock
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_a_lease_that_cannot_be_read_counts_until_it_is_stale(file: Path) -> None:
    write_lease(file)
    file.write_text('{"token": ', encoding="utf-8")
    with lease(file, **QUICK):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_who_was_thought_dead_notices_and_leaves_the_new_holder_alone(file: Path) -> None:
    with lease(file, **QUICK) as held:
        assert not held.lost
        other = json.loads(file.read_text()) | {"token": "new"}
        beside = file.with_name("beside")
        beside.write_text(json.dumps(other))
        beside.replace(file)
        deadline = time.monotonic() + 10
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held.lost
    assert json.loads(file.read_text())["token"] == "new"


def test_of_many_that_start_at_once_one_gets_it(file: Path) -> None:
    inside, refused, most = [0], [0], [0]
    lock, start = threading.Lock(), threading.Barrier(8)

    def run() -> None:
        start.wait()
        try:
            with lease(file, beat=0.05, stale=60, settle=0.1):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                deadline = time.monotonic() + 30
                while refused[0] < 7 and time.monotonic() < deadline:  # until all others have met it
                    time.sleep(0.02)
                with lock:
                    inside[0] -= 1
        except WorkError:
            with lock:
                refused[0] += 1

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert refused == [7]


def test_a_beat_makes_a_lease_younger(file: Path) -> None:
    write_lease(file)
    me = Holder.here()
    file.write_text(json.dumps(vars(me)), encoding="utf-8")
    os.utime(file, (1, 1))
    held = Lease(file, me, 0.02)
    deadline = time.monotonic() + 10
    while file.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    held.release()
    assert not file.exists()


def test_a_run_that_lost_its_lease_stops_before_it_writes(file: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from rlstride.training.callbacks import KeepLease

    arguments = TrainingArguments(output_dir=str(file.parent), use_cpu=True, report_to=[])
    with lease(file, **QUICK) as held:
        callback = KeepLease(held, updates_per_step=2)
        callback.on_step_end(arguments, TrainerState(global_step=2), TrainerControl())
        held.lost = True
        callback.on_step_end(arguments, TrainerState(global_step=3), TrainerControl())  # within a step of RL
        with pytest.raises(WorkError, match="thought dead"):
            callback.on_step_end(arguments, TrainerState(global_step=4), TrainerControl())


def test_a_patient_second_writer_waits_for_one_that_is_about_to_end(file: Path) -> None:
    inside, about_to_leave = threading.Event(), threading.Event()

    def first() -> None:
        with lease(file, beat=0.05, stale=60):
            inside.set()
            time.sleep(0.8)
            about_to_leave.set()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with lease(file, patience=40, beat=0.05, stale=60):
        assert about_to_leave.is_set()
    thread.join()
    with lease(file, beat=0.05, stale=60):
        began = time.monotonic()
        with pytest.raises(WorkError, match="wait for it"), lease(file, patience=1.5, stale=60):
            pass
        assert 1.4 < time.monotonic() - began < 30


def test_a_lease_that_somebody_removed_is_made_again(file: Path) -> None:
    with lease(file, **QUICK) as held:
        file.unlink()
        deadline = time.monotonic() + 10
        while not file.is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(file.read_text())["pid"] == os.getpid()
        assert not held.lost


def test_a_process_number_that_is_used_again_is_another_process(file: Path) -> None:
    here = Holder.here()
    assert not here.has_ended()
    assert replace(here, started="1").has_ended()


def test_a_holder_whose_folder_goes_while_another_waits_is_followed(file: Path) -> None:
    write_lease(file)
    done = threading.Event()

    def beats_and_goes() -> None:
        for _ in range(20):
            os.utime(file)
            time.sleep(0.05)
        done.set()
        shutil.rmtree(file.parent, ignore_errors=True)

    thread = threading.Thread(target=beats_and_goes)
    thread.start()
    with lease(file, patience=20, beat=0.05, stale=10, settle=0.1):
        assert done.is_set()
    thread.join()

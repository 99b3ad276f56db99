"""A process of its own for calls that may take too long."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rlstride.errors import RequestError, WorkError
from rlstride.tasks.worker import LostCallError, Worker

OWN = "test_tasks_worker:serve"


def serve(fails: bool = False) -> Callable[[str, float], object]:
    """What the process of these tests does."""
    if fails:
        raise RequestError("there is nothing to serve")

    def answer(what: str, number: float) -> object:
        if what == "sleep":
            time.sleep(number)
        if what == "compute":
            return 9**9 ** int(number) % 7  # C code that looks at no signal while it runs
        if what == "fail":
            raise ValueError("so it is")
        if what == "hash":
            return hash("the same everywhere")
        if what == "end":
            os._exit(3)
        return number, os.getpid()

    return answer


@pytest.fixture
def worker() -> Iterator[Worker]:
    found = Worker(OWN)
    yield found
    found.close()


def test_one_process_answers_all_calls(worker: Worker) -> None:
    answers = [worker.call("give", number, seconds=30) for number in (1.0, 2.0)]
    assert [number for number, _ in answers] == [1.0, 2.0]
    [process] = {process for _, process in answers}
    assert process != os.getpid()


@pytest.mark.parametrize(("what", "number"), [("sleep", 60), ("compute", 9)])
def test_a_call_that_takes_too_long_is_ended_and_the_next_one_is_answered(
    worker: Worker, what: str, number: float
) -> None:
    _, before = worker.call("give", 0, seconds=30)
    started = time.monotonic()
    with pytest.raises(LostCallError, match="more than 1 s"):
        worker.call(what, number, seconds=1)
    assert time.monotonic() - started < 10
    number, after = worker.call("give", 4, seconds=30)
    assert (number, after != before) == (4, True)


def test_the_limit_holds_in_a_thread_that_is_not_the_main_one(worker: Worker) -> None:
    found: list[object] = []

    def ask() -> None:
        with pytest.raises(LostCallError):
            worker.call("sleep", 60, seconds=1)
        found.append(worker.call("give", 5, seconds=30)[0])

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(timeout=60)
    assert found == [5]


def test_what_fails_or_ends_there_is_an_error_here(worker: Worker) -> None:
    with pytest.raises(WorkError, match="ValueError: so it is"):
        worker.call("fail", 0, seconds=30)
    with pytest.raises(LostCallError, match="its process ended"):
        worker.call("end", 0, seconds=30)
    with pytest.raises(RequestError, match="there is nothing to serve"):
        Worker(OWN, True).call("give", 0, seconds=30)


def test_the_order_of_sets_is_the_same_in_all_of_them() -> None:
    one, other = Worker(OWN), Worker(OWN)
    assert one.call("hash", 0, seconds=30) == other.call("hash", 0, seconds=30)
    one.close()
    other.close()

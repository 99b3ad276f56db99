import re
import sys

import pytest

import rlstride.progress as progress_module
from rlstride.progress import track


def test_progress_in_a_log_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("letters: 3 of 3 done in ")


def test_a_line_tells_the_speed_and_the_time_left_by_the_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 20.0, 25.0, 25.0])  # the start; after each item; at the end
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    list(track([30_000_000, 10_000_000], "tensors", size=lambda item: item))
    # 30 of 40 MB in 20 s: 1.5 MB/s, and 10 MB to go.
    assert capsys.readouterr().err.splitlines() == [
        "tensors: 1 of 2, 20 s, 2 MB/s, 7 s left",
        "tensors: 2 of 2 done in 25.0 s, 2 MB/s",
    ]


@pytest.mark.parametrize("sizes", [False, True])
def test_progress_on_a_terminal_is_a_bar(
    sizes: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track([1, 2, 3], "numbers", size=(lambda item: 1000 * item) if sizes else None)) == [1, 2, 3]
    shown = capsys.readouterr().err
    assert "numbers" in shown
    assert re.search("3/3", shown)

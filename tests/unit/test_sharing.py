"""What the tests' workers share is made once, and whole."""

from pathlib import Path

import pytest

from sharing import made_once


def test_a_shared_folder_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("content")

    first, second = (made_once(tmp_path_factory, "made-once", make) for _ in range(2))
    assert first == second
    assert len(made) <= 1  # by this worker, or by another one
    assert (first / "file").read_text() == "content"


def test_what_failed_half_way_is_made_anew(tmp_path_factory: pytest.TempPathFactory) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        made_once(tmp_path_factory, "made-anew", fail)
    folder = made_once(tmp_path_factory, "made-anew", lambda folder: (folder / "whole").touch())
    assert [file.name for file in folder.iterdir()] == ["whole"]

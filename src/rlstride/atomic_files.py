"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes ``target``'s place only when the block ends without an error."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        former = _aside(target)
        partial.rename(target)
        _flush(target.parent)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder, where there is one. A kill leaves it whole, or none of it under its name."""
    shutil.rmtree(_aside(folder), ignore_errors=True)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to, which takes ``target``'s place only when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        _flush(partial)
        partial.replace(target)
        _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Writes a whole text file or nothing."""
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_if_possible(target: Path, text: str) -> None:
    """Writes a whole text file that nothing is lost with, such as a cache; several processes may do so at once."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)


def sha256(file: Path) -> str:
    """The hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _aside(folder: Path) -> Path:
    """Gives a folder a hidden name beside it, which is returned; what was there is removed."""
    former = folder.with_name(f".{folder.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    return former


def digests_of(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of a folder's files by name."""
    return {file: sha256(folder / file) for file in files}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

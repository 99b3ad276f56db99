"""Whether files still are what a manifest was written over: told by size and time, and by SHA-256 once."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from rlstride.atomic_files import sha256, write_if_possible
from rlstride.errors import RequestError
from rlstride.trajectory.manifest import Manifest

FILE = ".verified.json"
_Seen = tuple[int, int, str]  # size, time of the last change in nanoseconds, digest


class VerifiedFiles:
    """What was found to be whole, kept beside a manifest so that large files are read for it once.

    A file is read again where its size or time is another than it was. Nothing is lost with the list, and a folder that
    cannot be written to has none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._read()

    def check(self, digests: Mapping[Path, str]) -> None:
        """Checks files against their SHA-256.

        Raises:
            RequestError: a file is missing, or holds something else than it did.
        """
        news = {}
        for file, expected in digests.items():
            key, seen = self._key(file), self._stat(file, expected)
            if self._seen.get(key) == seen:
                continue
            found = sha256(file)
            if found != expected:
                raise RequestError(
                    f"{file}: changed since the manifest was written (SHA-256 {found[:12]}... for {expected[:12]}...): "
                    "put the file back, or make the trajectory again (rlstride ingest)"
                )
            news[key] = seen
        if news:
            self._seen |= news
            self._write(news)

    def note(self, digests: Mapping[Path, str]) -> None:
        """Takes files for whole whose digests were taken just now."""
        news = {self._key(file): self._stat(file, digest) for file, digest in digests.items()}
        self._seen |= news
        self._write(news)

    def _key(self, file: Path) -> str:
        return os.path.relpath(file.absolute(), self._folder.absolute())

    @staticmethod
    def _stat(file: Path, digest: str) -> _Seen:
        try:
            found = file.stat()
        except OSError as error:
            raise RequestError(f"{file}: in the trajectory's manifest, but missing") from error
        return found.st_size, found.st_mtime_ns, digest

    def _read(self) -> dict[str, _Seen]:
        try:
            found = json.loads((self._folder / FILE).read_text(encoding="utf-8"))
            return {str(key): (int(size), int(time), str(digest)) for key, (size, time, digest) in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _write(self, news: Mapping[str, _Seen]) -> None:
        """Adds to what other processes noted meanwhile; what two write at once is read again by one of them."""
        write_if_possible(self._folder / FILE, json.dumps(self._read() | dict(news)) + "\n")


def note_whole(folder: Path, manifest: Manifest) -> None:
    """Takes the files of a manifest for whole that was written just now, from digests taken just before."""
    base = {folder / manifest.base.path / file: digest for file, digest in manifest.base.sha256.items()}
    steps = {folder / each.folder / file: digest for each in manifest.steps for file, digest in each.sha256.items()}
    VerifiedFiles(folder).note(base | steps)

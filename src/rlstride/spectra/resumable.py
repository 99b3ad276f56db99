"""Results of one tensor at a time, kept on disk until all are there: memory stays small, and a killed run continues."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlstride.atomic_files import atomic_file
from rlstride.progress import track
from rlstride.trajectory.store import Trajectory

Part = tuple[dict[str, Any], dict[str, Tensor]]  # what is measured of a tensor, as JSON can hold it, and its factors


class ResumableParts:
    """A hidden folder beside the result: for each tensor a file with its factors, and its rows as metadata.

    Attributes:
        folder: where the parts lie. Those of another request are deleted.
    """

    def __init__(self, out: Path, trajectory: Trajectory, asked: Any) -> None:
        """The parts of ``out``, measured of a trajectory; ``asked`` is how, as JSON can hold it."""
        decided_by = [_stored_files(trajectory), asked, torch.__version__]
        digest = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = out.parent / f".{out.name}.parts" / digest
        if not self.folder.is_dir():
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            self.folder.mkdir(parents=True)

    def complete(
        self, count: int, measure: Callable[[int], Part], description: str, size: Callable[[int], int]
    ) -> list[dict[str, Any]]:
        """Measures the parts that are not there yet, keeps each of them, and returns all, without their factors.

        Args:
            count: of the parts.
            measure: of a part's number.
            description: what is shown of the work (:func:`track`).
            size: the bytes that a part stands for.
        """
        found = {index: self._read(index) for index in range(count) if self._file(index).is_file()}
        for index in track([index for index in range(count) if index not in found], description, size=size):
            part, factors = measure(index)
            with atomic_file(self._file(index)) as partial:
                save_file(factors, partial, metadata={"part": json.dumps(part)})
            found[index] = part
        return [found[index] for index in range(count)]

    def join_factors(self, count: int, out: Path) -> None:
        """Writes the factors of the first ``count`` parts into one safetensors file, or nothing."""
        with atomic_file(out) as partial:
            join_safetensors([self._file(index) for index in range(count)], partial)

    def delete(self) -> None:
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _read(self, index: int) -> dict[str, Any]:
        with safe_open(self._file(index), "pt") as part:
            found: dict[str, Any] = json.loads(part.metadata()["part"])
        return found

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"


def _stored_files(trajectory: Trajectory) -> list[Any]:
    """The steps and their files with sizes and times: what was measured from others is not taken for this."""
    folders = {step: trajectory.model_folder(step) for step in (0, *trajectory.steps)}
    files = [(step, file) for step, folder in folders.items() for file in sorted(folder.rglob("*")) if file.is_file()]
    return [[step, str(file), file.stat().st_size, file.stat().st_mtime_ns] for step, file in files] + [[*folders]]


def join_safetensors(files: Iterable[Path], out: Path) -> None:
    """One safetensors file of several with different keys, of which one tensor at a time is in memory.

    The format is the length of a JSON header (8 bytes, little-endian), the header, padded with spaces to a multiple of
    8 bytes, and the tensors' bytes, at the offsets that the header gives.
    """
    files, header, end = list(files), dict[str, Any](), 0
    for file in files:
        for name, entry in _read_header(file)[0].items():
            first, last = entry["data_offsets"]
            header[name] = entry | {"data_offsets": [end, end + last - first]}
            end += last - first
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as joined:
        joined.write(len(text).to_bytes(8, "little") + text)
        for file in files:
            entries, begin = _read_header(file)
            with file.open("rb") as part:
                for entry in entries.values():
                    first, last = entry["data_offsets"]
                    part.seek(begin + first)
                    joined.write(part.read(last - first))
    with safe_open(out, "pt"):  # the library's own check of header and length
        pass


def holds_factors(file: Path) -> bool:
    """Whether a safetensors file holds the factors of a table, such as 60/model.layers.0.mlp.up_proj/u, and no more."""
    try:
        names = _read_header(file)[0]
    except (OSError, ValueError, OverflowError):  # not a safetensors file
        return False
    return all(re.fullmatch(r"\d+/.+/[usv]", name) for name in names)


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """A file's entries by name, and where its data begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    entries.pop("__metadata__", None)
    return dict(sorted(entries.items())), 8 + length

"""A tensor that torch.save wrote into the middle of a file: some of its rows are read without the rest."""

import io
import math
import os
import zipfile
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.safe_load import load_tensors

_LOCAL_HEADER = 30  # bytes before the name in a zip archive's own header of a member


class SavedTensor:
    """One archive of torch.save in a range of a file's bytes, as torch.distributed.checkpoint packs them.

    Attributes:
        shape: the tensor's shape.
        dtype: its dtype.

    Raises:
        RequestError: the file is missing or ends early, or the range holds something other than one tensor.
    """

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self._path, self._offset, self._length = path, offset, length
        try:
            size = path.stat().st_size
        except OSError as error:
            raise RequestError(f"{path}: this file cannot be read ({error})") from error
        if size < offset + length:
            raise RequestError(f"{path}: half-written: {size} of at least {offset + length} bytes are there")
        with torch.serialization.skip_data():
            described = self._load()
        self.shape, self.dtype = tuple(described.shape), described.dtype
        plain = described.is_contiguous() and described.storage_offset() == 0
        self._first_byte = self._find_data() if plain else None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive) of the tensor's first dimension."""
        if self._first_byte is None:
            return self._load()[start:stop]
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._path.open("rb") as file:
            file.seek(self._first_byte + start * row)
            data = bytearray(file.read((stop - start) * row))
        # frombuffer refuses an empty buffer.
        flat = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)
        return flat.reshape(stop - start, *self.shape[1:])

    def whole(self) -> Tensor:
        """The tensor."""
        return self._load()

    def _load(self) -> Tensor:
        with self._path.open("rb") as file:
            found = load_tensors(cast(IO[bytes], _Window(file, self._offset, self._length)), self._path)
        if not isinstance(found, Tensor) or found.layout is not torch.strided:
            raise RequestError(f"{self._path}: expected a plain tensor at byte {self._offset}")
        return found.detach()

    def _find_data(self) -> int | None:
        """Where in the file the first element is; None where the elements do not lie there as they are in memory."""
        with self._path.open("rb") as file, zipfile.ZipFile(_Window(file, self._offset, self._length)) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            data, order = members.get("data/0"), members.get("byteorder")
            expected = math.prod(self.shape) * self.dtype.itemsize
            if data is None or data.compress_type != zipfile.ZIP_STORED or data.file_size != expected:
                return None
            if order is None or archive.read(order) != b"little":
                return None
            # The member's own header is padded so that its data is aligned; the archive's table does not say how far.
            start = self._offset + data.header_offset
            file.seek(start)
            header = file.read(_LOCAL_HEADER)
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return start + _LOCAL_HEADER + name + extra


class _Window(io.RawIOBase):
    """A range of a file's bytes as a file of its own."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._length - self._at)])
        self._at += count
        return count

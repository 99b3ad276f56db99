"""Hugging Face folders: one safetensors file, or several and an index."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlstride.errors import RequestError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class HFFolder:
    """A Hugging Face folder with one safetensors file, or several and an index.

    Attributes:
        remark: what to know of which files are read; None where there is nothing.

    Raises:
        RequestError: there is neither, both are there and differ, or what there is is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.remark: str | None = None
        self._headers: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
        self._last: tuple[Path, safe_open] | None = None  # parsing a header of many tensors anew for each costs more
        self._files = self._resolved()

    def _resolved(self) -> dict[str, str]:
        """The file of each tensor. The one place that says which of a folder's files count."""
        single, index = self.path / SINGLE, self.path / INDEX
        if not single.is_file() and not index.is_file():
            raise RequestError(f"{self.path}: no {SINGLE} and no {INDEX} here; expected a Hugging Face model folder")
        sharded = _weight_map(index) if index.is_file() else {}
        if not single.is_file() or set(sharded.values()) == {SINGLE}:
            return sharded
        with open_safetensors(single) as file:
            whole = dict.fromkeys(file.keys(), SINGLE)
        if not sharded:
            return whole
        if all((self.path / file).is_file() for file in sharded.values()):
            if not _hold_the_same(single, tuple(sorted({self.path / file for file in sharded.values()}))):
                raise RequestError(
                    f"{self.path}: {SINGLE} and the shards of {INDEX} are both here, and hold different weights: move "
                    "away the ones that are left over"
                )
        else:
            self.remark = f"from {SINGLE}: the shards that {INDEX} names are not all there"
        return whole

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._header(name)[0]

    def dtype(self, name: str) -> torch.dtype:
        stored = self._header(name)[1]
        if stored not in _DTYPES:
            raise RequestError(f"{self.path / self._files[name]}: {name}: torch has no dtype for safetensors' {stored}")
        return _DTYPES[stored]

    def tensor(self, name: str) -> Tensor:
        with self._open(name) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensor(name)[start:stop]  # the file is mapped: nothing but these rows is read

    def files(self) -> list[str]:
        """The names of the safetensors files that hold the tensors, sorted."""
        return sorted(set(self._files.values()))

    def problems(self) -> list[str]:
        found = []
        for file in self.files():
            try:
                absent = sorted(
                    {name for name, holder in self._files.items() if holder == file} - set(self._read(file))
                )
            except RequestError as error:
                found.append(str(error))
            else:
                found += [f"{self.path / file}: the index says that {name!r} is here, but it is not" for name in absent]
        return found

    def _header(self, name: str) -> tuple[tuple[int, ...], str]:
        """A tensor's shape, and its dtype as safetensors calls it."""
        if name not in self._files:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        header = self._read(self._files[name])
        if name not in header:
            raise RequestError(f"{self.path / self._files[name]}: the index says that {name!r} is here, but it is not")
        return header[name]

    def _read(self, file: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """A file's header, read once: a model of experts has thousands of tensors in a file."""
        if file not in self._headers:
            with open_safetensors(self.path / file) as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                self._headers[file] = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
        return self._headers[file]

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        if name not in self._files:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        path = self.path / self._files[name]
        if self._last is None or self._last[0] != path:
            self._last = path, open_safetensors(path)
        try:
            yield self._last[1]
        except SafetensorError as error:
            raise RequestError(f"{path}: {name!r} should be in this file, but cannot be read ({error})") from error


def _hold_the_same(single: Path, shards: tuple[Path, ...]) -> bool:
    """Whether a file holds the tensors of several, bit for bit."""
    times = tuple(file.stat().st_mtime_ns for file in (single, *shards))
    return _compared(single, shards, times)


@functools.lru_cache(maxsize=64)
def _compared(single: Path, shards: tuple[Path, ...], _: tuple[int, ...]) -> bool:
    with open_safetensors(single) as whole:
        left = set(whole.keys())
        for shard in shards:
            with open_safetensors(shard) as part:
                for name in part.keys():  # noqa: SIM118
                    if name not in left or not same_bits(whole.get_tensor(name), part.get_tensor(name)):
                        return False
                    left.remove(name)
    return not left


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are of one dtype and shape, and equal to the bit: NaN equals itself, 0 does not equal -0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.dtype.itemsize]
    return torch.equal(first.contiguous().view(integers), second.contiguous().view(integers))


def open_safetensors(path: Path) -> safe_open:
    """An opened safetensors file.

    Raises:
        RequestError: it is missing, or not whole.
    """
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise RequestError(f"{path}: this file is named in the index but missing") from error
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path}: not a whole safetensors file ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        RequestError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: not a whole JSON file ({error})") from error
    if not isinstance(found, dict):
        raise RequestError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise RequestError(f"{index}: no weight_map in it; expected the index of a sharded model")
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise RequestError(f"{index}: {name}: {file!r} is no file beside the index")
    return files

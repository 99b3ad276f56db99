"""Where tensors come from: one at a time, by name, in the dtype they are stored in."""

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from rlstride.errors import RequestError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class TensorSource(Protocol):
    """A checkpoint whose tensors are read lazily."""

    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading its data."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored dtype, on the CPU.

        Raises:
            RequestError: there is no such tensor, or its file is damaged.
        """
        ...


class HFFolder:
    """A Hugging Face folder with one safetensors file, or several and an index."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if (self.path / _INDEX).is_file():
            self._files: dict[str, str] = json.loads((self.path / _INDEX).read_text())["weight_map"]
        elif (self.path / _SINGLE).is_file():
            with self._open(_SINGLE) as file:
                self._files = dict.fromkeys(file.keys(), _SINGLE)
        else:
            raise RequestError(f"{self.path}: no {_SINGLE} and no {_INDEX} here; expected a Hugging Face model folder")

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open(self._file_of(name)) as file:
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        with self._open(self._file_of(name)) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def _file_of(self, name: str) -> str:
        if name not in self._files:
            raise RequestError(f"{self.path}: there is no tensor {name!r}")
        return self._files[name]

    def _open(self, file: str) -> safe_open:
        try:
            return safe_open(self.path / file, framework="pt", device="cpu")
        except FileNotFoundError as error:
            raise RequestError(f"{self.path / file}: this file is named in the index but missing") from error
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{self.path / file}: not a whole safetensors file ({error})") from error

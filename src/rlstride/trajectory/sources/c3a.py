"""PEFT C3A adapters over their base: W = W0 + a matrix of circulant blocks (arXiv 2407.19342)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.hf import open_safetensors, read_json
from rlstride.trajectory.sources.lora import CONFIG, WEIGHTS, LoRAAdapter
from rlstride.trajectory.sources.source import ModelSource, StoredSource

_PREFIX, _KERNEL = "base_model.model.", ".c3a_kernel"


def open_adapter(path: Path, base: ModelSource) -> StoredSource:
    """An adapter over its base, of whichever kind that can be read.

    Raises:
        RequestError: a file is missing or damaged, the adapter is of another kind, or does not fit the base.
    """
    is_c3a = read_json(path / CONFIG).get("peft_type") == "C3A"
    return C3AAdapter(path, base) if is_c3a else LoRAAdapter(path, base)


class C3AAdapter:
    """A model that is its base and block-circulant updates of some weights, which have full rank and no factors.

    An adapted tensor is put together in float32, or in float64 where the base is.

    Args:
        path: a folder with adapter_config.json and adapter_model.safetensors.
        base: the model that the adapter was trained over.

    Raises:
        RequestError: a file is missing or damaged, or the adapter does not fit the base.
    """

    def __init__(self, path: str | Path, base: ModelSource) -> None:
        self.path = Path(path)
        self._base = base
        config: dict[str, Any] = read_json(self.path / CONFIG)
        if config.get("bias", "none") != "none":
            raise RequestError(f"{self.path / CONFIG}: bias {config['bias']!r} is set: merge this adapter with PEFT")
        if not (self.path / WEIGHTS).is_file():
            raise RequestError(f"{self.path / WEIGHTS}: missing; an adapter is read from this file alone")
        names = set(base.names())
        self._kernels: dict[str, str] = {}
        with open_safetensors(self.path / WEIGHTS) as file:
            for key in sorted(file.keys()):
                name = f"{key.removeprefix(_PREFIX).removesuffix(_KERNEL)}.weight"
                if not key.endswith(_KERNEL) or name not in names:
                    raise RequestError(
                        f"{self.path / WEIGHTS}: {key}: the base has no tensor for it; an adapter of another base?"
                    )
                m, n, b = file.get_slice(key).get_shape()
                if (m * b, n * b) != base.shape(name):
                    raise RequestError(
                        f"{self.path / WEIGHTS}: {key}: it makes {(m * b, n * b)} of {name}, which is "
                        f"{base.shape(name)} in the base"
                    )
                self._kernels[name] = key

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        stored = self._base.dtype(name)
        return torch.promote_types(stored, torch.float32) if name in self._kernels else stored

    def tensor(self, name: str) -> Tensor:
        return self.rows(name, 0, self.shape(name)[0]) if name in self._kernels else self._base.tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        part = self._base.rows(name, start, stop)
        if name not in self._kernels:
            return part
        with open_safetensors(self.path / WEIGHTS) as file:
            kernel: Tensor = file.get_tensor(self._kernels[name])
        return part.to(self.dtype(name)) + circulant_rows(kernel.to(self.dtype(name)), start, stop)

    def files(self) -> list[str]:
        return [CONFIG, WEIGHTS]

    def problems(self) -> list[str]:
        return []  # what can be wrong with an adapter keeps it from being opened


def circulant_rows(kernel: Tensor, start: int, stop: int) -> Tensor:
    """Rows of the update of a kernel w: entry (i b + p, j b + t) is w[i, j, (t - p) mod b] / (columns).

    That is what PEFT's convolution, fft(ifft(x) fft(w)) / (columns), does to x, without the transforms' rounding.

    Args:
        kernel: w (m / b, n / b, b) for a matrix (m, n).
        start: the first row.
        stop: the row after the last.

    Returns:
        (stop - start, n).
    """
    _, blocks, b = kernel.shape
    rows = torch.arange(start, min(stop, kernel.shape[0] * b))
    shifts = (torch.arange(b)[None, :] - (rows % b)[:, None]) % b  # (rows, b)
    picked = kernel[rows // b].gather(2, shifts[:, None, :].expand(-1, blocks, -1))  # (rows, n / b, b)
    return picked.reshape(len(rows), blocks * b) / (blocks * b)

"""A GPU that is not there: tensors on ``cuda`` that the CPU computes, and that refuse what a real GPU's would.

What it shows on a machine without a GPU is whether every tensor is where it should be: an operation on tensors of both
devices fails with CUDA's own sentence, as does NumPy's look at one on the GPU. Kernels, streams, memory and speed are
not in it, so it replaces no run on a real one.

:func:`run` runs verbs of `rlstride` on it, one after the other; :func:`environment` has what must be loaded before.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
_as_tensor, _tensor = torch.as_tensor, torch.tensor


def environment(folder: Path) -> dict[str, str]:
    """Builds the library in a folder; variables of a process that shall have the GPU."""
    torch_folder = Path(torch.__file__).parent
    library = folder / "gpu_standin.so"
    command = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}"]
    command += [str(Path(__file__).with_suffix(".cpp")), "-o", str(library)]
    command += [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    # Weights are otherwise loaded by threads, which know nothing of the mode below.
    return {"LD_PRELOAD": str(library), "HF_DEACTIVATE_ASYNC_LOAD": "1"}


class OnGpu(torch.Tensor):
    """A tensor on the GPU. Its values are those of ``held``, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: OnGpu = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=GPU, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Lists in an index reach no mode: they are made tensors here, as CUDA makes them."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(_tensor(part).to(GPU) if isinstance(part, list) else part for part in parts)
        return torch.Tensor.__getitem__(self, parts if isinstance(index, tuple) else parts[0])

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnGpu({self.held!r})"


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors_in((args, kwargs)))
    on_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
    if on_gpu and func not in (aten._to_copy.default, aten.copy_.default):
        _require_one_device(func, args, tensors)
    device = kwargs.get("device")
    if device is not None:
        on_gpu = torch.device(device).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu") if on_gpu else device}
    if kwargs.get("pin_memory"):  # for copies that need not wait; here none does
        kwargs = {**kwargs, "pin_memory": False}
    found = func(*on_host(args), **on_host(kwargs))
    if func is aten.copy_.default:
        return args[0]
    if not on_gpu:
        return found
    wrapped = OnGpu(found) if isinstance(found, torch.Tensor) else tree_map(_on_gpu, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All of them in nested dictionaries, lists and tuples; torch's own way of looking takes most of a run's time."""
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in (list, tuple):
        for part in value:
            yield from _tensors_in(part)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _on_gpu(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, torch.Tensor) else value


def _require_one_device(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Numbers (0-d) may be anywhere, and indices of a tensor on the GPU on the CPU; all else is an error of CUDA's."""
    name = func._schema.name
    if name in ("aten::index", "aten::index_put", "aten::index_put_") and isinstance(args[0], OnGpu):
        tensors = [part for part in (args[0], *args[2:]) if isinstance(part, torch.Tensor)]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim() > 0]
    if elsewhere:
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu")


def on_host(value: Any) -> Any:
    """The values of a tensor on the GPU, or of all in nested dictionaries, lists and tuples; all else as it is."""
    if isinstance(value, OnGpu):
        return value.held
    if isinstance(value, dict):
        return {key: on_host(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(on_host, value))
    return value


def plug_in() -> None:
    """From here on this process has the GPU."""
    from torch.utils._device import _device_constructors

    _device_constructors()  # lists torch.tensor itself, before it is replaced
    torch.tensor, torch.as_tensor = _made_by(_tensor), _made_by(_as_tensor)  # whose data reach no mode
    torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to must keep its parameters' identity
    torch._C._set_multithreading_enabled(False)  # backward in this thread, where the mode is
    said: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "none",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "mem_get_info": (70 << 30, 80 << 30),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
    }
    said |= dict.fromkeys(["_lazy_init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"])
    said |= dict.fromkeys(["manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all"])
    for name, value in said.items():
        setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    torch.cuda.get_rng_state = lambda *args: torch.get_rng_state()
    torch.cuda.get_rng_state_all = lambda: [torch.get_rng_state()]
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all", "manual_seed_all"):
        setattr(torch.cuda.random, name, getattr(torch.cuda, name))
    _let_files_be_written()
    _Devices().__enter__()


def _made_by(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
        on_gpu = device is not None and torch.device(device).type == "cuda"
        found = make(data, *args, **kwargs) if on_gpu else make(data, *args, device=device, **kwargs)
        found = found.to(GPU) if on_gpu else found
        return found.requires_grad_() if requires_grad else found

    return made


def _let_files_be_written() -> None:
    """Both formats copy to the host first, as they do from a real GPU; this one has no address to copy from."""
    import safetensors.torch
    from transformers import PreTrainedModel

    save, save_file, save_pretrained = torch.save, safetensors.torch.save_file, PreTrainedModel.save_pretrained
    torch.save = lambda value, *args, **kwargs: save(on_host(value), *args, **kwargs)
    safetensors.torch.save_file = lambda tensors, *args, **kwargs: save_file(on_host(dict(tensors)), *args, **kwargs)
    for name in ("storage_ptr", "storage_size", "_end_ptr"):
        found = getattr(safetensors.torch, name)
        setattr(safetensors.torch, name, lambda tensor, found=found: found(on_host(tensor)))

    def saved(self: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> Any:
        weights = on_host(dict(self.state_dict() if state_dict is None else state_dict))
        return save_pretrained(self, *args, state_dict=weights, **kwargs)

    PreTrainedModel.save_pretrained = saved


def run() -> NoReturn:
    """Runs verbs, which standard input has as lists of words in JSON, until one fails; the GPU is plugged in before."""
    from rlstride.cli import main

    status = 0
    for verb in json.load(sys.stdin):
        status = status or main([*verb, "--debug"])
    sys.stdout.flush()
    os._exit(status)  # the library goes before torch does

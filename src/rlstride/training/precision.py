"""bfloat16 in training: where it is slow, and the base that a run with bf16 masters starts from."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlstride.atomic_files import atomic_folder
from rlstride.errors import RequestError
from rlstride.training.run import Run
from rlstride.trajectory.model_folder import ModelFolder

BASE = "base"  # in a trajectory's folder, where the study's own base lies between bf16's numbers


def require_bf16(device: str, *, say: bool = True) -> None:
    """Checks that bfloat16 can be computed with, and says on stderr where it is slow: a CPU without its instructions.

    Args:
        device: ``cpu`` or ``cuda``.
        say: whether this process speaks.

    Raises:
        RequestError: the GPU has no bfloat16.
    """
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RequestError("training: precision: bf16: this GPU has no bfloat16; write precision: fp32")
    if device == "cpu" and say and not cpu_has_bf16():
        print(
            "training: precision: bf16: this CPU has neither avx512_bf16 nor amx, and is slower in bfloat16 than in "
            "fp32",
            file=sys.stderr,
            flush=True,
        )


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 by instructions of its own."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def base_as_trained(run: Run[Any], out: Path) -> Path:
    """The folder of the base that a run's updates are measured from.

    Masters in bf16 begin at the base rounded to bf16. Where that is another model than the study's, it is written
    beside the kept steps: measured from the study's own, every update would hold the base's rounding as well.

    Args:
        run: whose base it is.
        out: the trajectory's folder.
    """
    if run.training.masters == "fp32" or _is_on_bf16_grid(run.base_folder):
        return run.base_folder
    if (out / BASE).is_dir():  # whole, of this run
        return out / BASE
    with atomic_folder(out / BASE) as partial:
        # As TRL loads the policy itself.
        AutoModelForCausalLM.from_pretrained(run.base_folder, dtype=torch.bfloat16).save_pretrained(partial)
        AutoTokenizer.from_pretrained(run.base_folder).save_pretrained(partial)
    return out / BASE


def _is_on_bf16_grid(folder: Path) -> bool:
    source = ModelFolder(folder).source
    tensors = map(source.tensor, source.names())
    return all(torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor) for tensor in tensors)

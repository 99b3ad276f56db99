"""Weights stored as integers or 8-bit floats, with scales beside them: read as they lie, they are other numbers."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlstride.errors import RequestError
from rlstride.trajectory.sources.source import TensorSource

# What quantisers put beside a weight, or in its place: fp8 and compressed-tensors, bitsandbytes, GPTQ and AWQ, torchao.
_BESIDE = re.compile(
    r"(.+)\.(?:weight_scale(?:_inv|_2)?|weight_zero_point|weight_packed|weight_shape|input_scale|SCB|weight_format|"
    r"qweight|qzeros|scales|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|quant_state(?:\..+)?|weight\.absmax|"
    r"weight\.(?:quant_map|nested_absmax|nested_quant_map|quant_state\..+)|weight_(?:qdata|scale_and_zero)|"
    r"(?:gate_up_proj|down_proj)_(?:blocks|scales))|(.+)\.(?:gate_up_proj|down_proj)_(?:blocks|scales)"
)
_WAY_OUT = "give the weights in 16 or 32 bit (load the model with dequantize, or merge and save it in bfloat16)"


def refuse_quantised(source: TensorSource, weights: Iterable[str], others: Iterable[str]) -> None:
    """Checks that a checkpoint's weights are what they say: floating, and at least 16 bits wide.

    Args:
        source: the checkpoint.
        weights: its names of the model's parameters.
        others: its names of tensors that are none of the model's, among which a quantiser's scales would be.

    Raises:
        RequestError: a weight is not, or scales lie beside one.
    """
    for name in others:
        if _BESIDE.fullmatch(name):
            raise RequestError(f"{source.path}: quantised weights: {name} is a quantiser's own tensor; {_WAY_OUT}")
    for name in weights:
        dtype = source.dtype(name)
        if not dtype.is_floating_point or dtype.itemsize < 2:
            stored = str(dtype).removeprefix("torch.")
            raise RequestError(f"{source.path}: quantised weights: {name} is stored in {stored}; {_WAY_OUT}")


def refuse_quantised_config(config: Mapping[str, Any], path: Path) -> None:
    """Checks that a config.json does not say that the weights beside it are quantised.

    Raises:
        RequestError: it does.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if found:
        method = found.get("quant_method", "unknown method") if isinstance(found, Mapping) else found
        raise RequestError(
            f"{path}: this model is quantised ({method}), so its files do not hold the weights that updates are "
            f"counted from; {_WAY_OUT}"
        )

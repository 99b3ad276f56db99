"""The model's own names in a checkpoint of a training run, which wraps them and keeps other things beside them."""

import re
from collections.abc import Iterable
from pathlib import Path

from rlstride.errors import RequestError

_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OTHERS = ("optim", "optimizer", "optimizers", "optimizer_state", "lr_scheduler", "scheduler", "dataloader", "rng")
_LAYER = re.compile(r"^(.*?)(?:model\.(?:language_model\.)?layers|transformer\.h|gpt_neox\.layers)\.\d+\.")


def model_names(keys: Iterable[str], path: Path) -> dict[str, str]:
    """The checkpoint's key of each of the model's tensors, by the name that a Hugging Face folder gives the tensor.

    ``model.model.layers.0.mlp.up_proj.weight``, as saving ``{"model": state_dict}`` makes it, and the marks that
    torch.compile and FSDP leave, become ``model.layers.0.mlp.up_proj.weight``; an optimiser's tensors are left out.

    Raises:
        RequestError: the checkpoint holds an adapter inside the model.
    """
    clean = {_WRAPPERS.sub("", key): key for key in keys if key.split(".", 1)[0] not in _OTHERS}
    adapted = next((name for name in sorted(clean) if ".lora_A." in name or ".base_layer." in name), None)
    if adapted:
        raise RequestError(
            f"{path}: {adapted}: this is a model with an adapter in it; give the adapter's own folder "
            "(verl writes it as lora_adapter), with adapter_config.json, instead"
        )
    prefixes = {found[1] for name in clean if (found := _LAYER.match(name))}
    prefix = min(prefixes, key=len, default="")
    return {name.removeprefix(prefix): key for name, key in clean.items() if name.startswith(prefix)}

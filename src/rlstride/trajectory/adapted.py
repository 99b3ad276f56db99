"""A model that trains an adapter of PEFT's, as whole weights: what is frozen, what the adapter adds, and their sum."""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor

from rlstride.errors import RequestError

_MOVED = "rlstride_base_is_moved"
_WIDE = (torch.float32, torch.float64)


class Adapted:
    """The weights of a model with an adapter, under the names that they have in its base.

    Args:
        model: whose active adapter counts.

    Attributes:
        frozen: the base's tensors, in place: to write into one is to change the model.

    Raises:
        RequestError: more is trained than an adapter (``modules_to_save``).
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model.get_base_model()
        modules = dict(self._model.named_modules())
        beside = next((name for name, module in modules.items() if isinstance(module, AuxiliaryTrainingWrapper)), None)
        if beside:
            raise RequestError(f"{beside}: is trained as a whole beside the adapter; leave it out of modules_to_save")
        self._layers = {name: module for name, module in modules.items() if isinstance(module, BaseTunerLayer)}
        self.frozen: dict[str, Tensor] = dict(self._frozen())

    def _frozen(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._model.state_dict().items():
            layer = next((each for each in self._layers if name.startswith(f"{each}.")), None)
            if layer is None:
                yield name, tensor
            elif name.startswith(own := f"{layer}.base_layer."):
                yield f"{layer}.{name.removeprefix(own)}", tensor

    @property
    def adapted(self) -> list[str]:
        """The tensors that the adapter adds to."""
        return [f"{layer}.weight" for layer in self._layers]

    @torch.no_grad()
    def added(self, name: str) -> Tensor | None:
        """What the adapter adds to a tensor, float64, of the tensor's shape; None where it adds nothing."""
        layer = self._layers.get(name.removesuffix(".weight"))
        if layer is None or not name.endswith(".weight"):
            return None
        updates = [layer.get_delta_weight(adapter).double() for adapter in layer.active_adapters]
        return torch.stack(updates).sum(dim=0)

    def whole(self) -> dict[str, Tensor]:
        """Base and adapter in one, in the base's dtype: what the model computes with."""
        found = {}
        for name, tensor in self.frozen.items():
            added = self.added(name)
            found[name] = tensor if added is None else (tensor.double() + added).to(tensor.dtype)
        return found

    @torch.no_grad()
    def put(self, name: str, tensor: Tensor) -> None:
        """Writes into the base what makes base and adapter together a tensor: the adapter stays as it is."""
        place, added = self.frozen[name], self.added(name)
        place.copy_(tensor if added is None else tensor.to(added) - added)

    def save(self, folder: Path, *, whole: bool) -> None:
        """Writes a Hugging Face folder of the frozen weights, or of the sums."""
        self._model.save_pretrained(folder, state_dict=self.whole() if whole else dict(self.frozen))

    def require_wide(self) -> None:
        """Checks that what is written into the base survives there.

        Raises:
            RequestError: an adapted tensor's dtype would round away most of a small change.
        """
        for name in self.adapted:
            if self.frozen[name].dtype not in _WIDE:
                dtype = str(self.frozen[name].dtype).removeprefix("torch.")
                raise RequestError(
                    f"{name}: the adapter's base is in {dtype}, whose rounding would swallow a small jump; load it in "
                    "float32"
                )


def mark_base_as_moved(model: PeftModel, folder: Path) -> None:
    """Notes that a model's base is no longer the one that it began with: adapters that are saved from now on name
    ``folder`` as their base, and a trajectory keeps whole weights of the model, as its own base would not fit.
    """
    setattr(model, _MOVED, True)
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(folder.resolve())


def base_is_moved(model: PeftModel) -> bool:
    """Whether the base is no longer the one that the model began with."""
    return getattr(model, _MOVED, False)

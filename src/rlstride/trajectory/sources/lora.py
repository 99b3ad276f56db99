"""PEFT LoRA and AdaLoRA adapters over their base: W = W0 + scaling B (E) A, and the factors of that update."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlstride.errors import RequestError
from rlstride.trajectory.sources.hf import open_safetensors, read_json, same_bits
from rlstride.trajectory.sources.source import ModelSource

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B|E|embedding_A|embedding_B)(?:\.weight)?")
_KINDS = ("LORA", "ADALORA")
# Settings under which W0 + scaling B A is not what the adapter computes.
_OTHER_KINDS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
    "ensure_weight_tying",
)
# Settings that only say how the adapter came to be, or that are read here. One that is in neither list is a later
# PEFT's, and may mean another computation.
_KNOWN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *(
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
    ),
    *("use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "runtime_config"),
    *("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),  # AdaLoRA
}
# Ways to start A and B that leave the base as it was; pissa, olora, corda and loftq train over a changed one.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class _Update:
    """Where one weight's factors are, and how the update is made of them.

    Attributes:
        a: key of A (r, in).
        b: key of B (out, r).
        scaling: alpha / r, or alpha / sqrt(r) with rank stabilisation.
        transposed: the weight is (in, out), so the update is (B A)^T.
        e: key of AdaLoRA's singular values (r, 1), which the rows of A are multiplied by; None elsewhere.
    """

    a: str
    b: str
    scaling: float
    transposed: bool
    e: str | None = None


class LoRAAdapter:
    """A model that is its base, a low-rank update of some weights, and whole replacements of others.

    An adapted tensor is put together in float32, or in float64 where base or factors are: the sum in a narrower
    dtype would round away most of a small update, and no file holds that sum. Every other tensor is the base's.

    Args:
        path: a folder with adapter_config.json and adapter_model.safetensors.
        base: the model that the adapter was trained over, under its own names.

    Raises:
        RequestError: a file is missing or damaged, the adapter is of another kind, does not fit the base, adds nothing,
            or changes one of two tensors that the base ties.
    """

    def __init__(self, path: str | Path, base: ModelSource) -> None:
        self.path = Path(path)
        self._base = base
        self._config = adapter_config(self.path)
        if not (self.path / WEIGHTS).is_file():
            raise RequestError(f"{self.path / WEIGHTS}: missing; an adapter is read from this file alone")
        with open_safetensors(self.path / WEIGHTS) as file:
            self._shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        self._replaced: dict[str, str] = {}
        self._updates = self._index()

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        start = self._factor(self._replaced[name]).dtype if name in self._replaced else self._base.dtype(name)
        if name not in self._updates:
            return start
        return _sum_dtype(start, self._factor(self._updates[name].a).dtype)

    def tensor(self, name: str) -> Tensor:
        if name in self._updates:
            return self.rows(name, 0, self.shape(name)[0])
        return self._factor(self._replaced[name]) if name in self._replaced else self._base.tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        replaced = self._replaced.get(name)
        part = self._factor(replaced)[start:stop] if replaced else self._base.rows(name, start, stop)
        if name not in self._updates:
            return part
        left, right = self._factors(self._updates[name])
        dtype = _sum_dtype(part.dtype, left.dtype)
        return part.to(dtype) + left[start:stop].to(dtype) @ right.to(dtype)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The update's own factors L (m, r) and R (r, n), with W = W0 + L R; the scaling is in L.

        None where they are not the whole update: the tensor is the base's, or was replaced, or AdaLoRA left it no rank.
        """
        if name not in self._updates or not self._shapes[self._updates[name].a][0]:
            return None
        # PEFT may save the embedding itself beside its factors, as the base has it or resized and trained.
        replaced = self._replaced.get(name)
        if replaced and not torch.equal(self._factor(replaced), self._base.tensor(name)):
            return None
        return self._factors(self._updates[name])

    def files(self) -> list[str]:
        return [CONFIG, WEIGHTS]

    def problems(self) -> list[str]:
        return []  # what can be wrong with an adapter keeps it from being opened

    def _index(self) -> dict[str, _Update]:
        """The update of each adapted weight by the weight's name; fills ``_replaced`` with the rest of the file."""
        names = set(self._base.names())
        factors: dict[str, dict[str, str]] = {}
        for key in sorted(self._shapes):
            found = _FACTOR.fullmatch(key)
            if found:
                factors.setdefault(found[1].removeprefix(_PREFIX), {})[found[2]] = key
            else:
                name = re.sub(r"\.(?:base_layer|modules_to_save)\.", ".", key.removeprefix(_PREFIX))
                if (other := self._base.tied_to(name)) is not None:
                    self._check_tied_copy(key, name if name in names else other)
                    continue
                if ".lora_" in key or name not in names:
                    raise self._error(key, "the base has no tensor for it; a LoRA adapter of another kind, or base?")
                self._check_shape(key, self._shapes[key], name)
                self._replaced[name] = key
        for module, keys in factors.items():
            if self._base.tied_to(f"{module}.weight") is not None:
                raise self._tied(next(iter(keys.values())))
        return {f"{module}.weight": self._update(module, keys, names) for module, keys in factors.items()}

    def _check_tied_copy(self, key: str, name: str) -> None:
        """PEFT may save a tied embedding beside the adapter; only where it was not trained is it the base's."""
        self._check_shape(key, self._shapes[key], name)
        if not same_bits(self._factor(key), self._base.tensor(name)):
            raise self._tied(key)

    def _tied(self, key: str) -> RequestError:
        return self._error(
            key,
            "the base ties its output head to the embedding, and an adapter of one is no update of the other: merge "
            "this adapter with PEFT into a copy of the base whose head is its own (tie_word_embeddings: false), and "
            "give that copy as the base",
        )

    def _update(self, module: str, keys: dict[str, str], names: set[str]) -> _Update:
        ada = self._config["peft_type"] == "ADALORA"
        e = keys.pop("E", None) if ada else None
        if set(keys) not in ({"A", "B"}, {"embedding_A", "embedding_B"}) or ada != (e is not None):
            raise self._error(next(iter(keys.values())), "its other factor is missing")
        a, b = (keys[part] for part in sorted(keys))
        if f"{module}.weight" not in names:
            raise self._error(a, f"the base {self._base.path} has no tensor {module + '.weight'!r}")
        if len(self._shapes[a]) != 2 or len(self._shapes[b]) != 2 or self._shapes[a][0] != self._shapes[b][1]:
            raise self._error(a, f"factors of the shapes {self._shapes[a]} and {self._shapes[b]} have no product")
        r = self._shapes[a][0]
        if e is not None and self._shapes[e] != (r, 1):
            raise self._error(e, f"its shape is {self._shapes[e]}, but A's {self._shapes[a]}")
        by_model = self._base.is_transposed(f"{module}.weight")
        fan_in_fan_out = bool(self._config.get("fan_in_fan_out")) if by_model is None else by_model
        transposed = "embedding_A" in keys or fan_in_fan_out
        update = _Update(a, b, self._scaling(module, r), transposed, e)
        shape = (self._shapes[b][0], self._shapes[a][1])
        self._check_shape(a, shape[::-1] if transposed else shape, f"{module}.weight")
        return update

    def _scaling(self, module: str, r: int) -> float:
        """What PEFT multiplies the factors' product by; AdaLoRA's goes by the rank at the start, for good."""
        if self._config["peft_type"] == "ADALORA":
            start = float(self._config["init_r"])
            alpha = float(self._config.get("lora_alpha", 8))
            return (alpha if alpha > 0 else start) / (start + 1e-5)
        alpha = _by_pattern(self._config.get("alpha_pattern"), module, self._config.get("lora_alpha", 8))
        if alpha == 0:
            raise RequestError(
                f"{self.path / CONFIG}: lora_alpha is 0 for {module}, which makes every update zero: some mergers "
                "write 0 where they do not know it; put the run's own value there"
            )
        return alpha / math.sqrt(r) if self._config.get("use_rslora") else alpha / r

    def _check_shape(self, key: str, shape: tuple[int, ...], name: str) -> None:
        if shape != self._base.shape(name):
            raise self._error(key, f"it makes {shape} of {name}, which is {self._base.shape(name)} in the base")

    def _factors(self, update: _Update) -> tuple[Tensor, Tensor]:
        a, b = self._factor(update.a), self._factor(update.b)  # (r, in), (out, r)
        # Scaled in float32 at least: a factor of 1 / 3 in bfloat16 would shift the whole update.
        dtype = _sum_dtype(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
        if update.e is not None:
            a = a * self._factor(update.e).to(dtype)
        return (a.mT * update.scaling, b.mT) if update.transposed else (b * update.scaling, a)

    def _factor(self, key: str) -> Tensor:
        with open_safetensors(self.path / WEIGHTS) as file:
            factor: Tensor = file.get_tensor(key)
        return factor

    def _error(self, key: str, what: str) -> RequestError:
        return RequestError(f"{self.path / WEIGHTS}: {key}: {what}")


def adapter_config(path: Path) -> dict[str, Any]:
    """The settings of an adapter that is W0 + scaling B A.

    Raises:
        RequestError: there are none, or they are those of another kind of adapter.
    """
    config = read_json(path / CONFIG)
    kind = config.get("peft_type")
    if kind not in _KINDS:
        raise RequestError(
            f"{path / CONFIG}: peft_type {kind}: only LORA, ADALORA and C3A are read; merge this adapter with PEFT"
        )
    other = next((setting for setting in _OTHER_KINDS if config.get(setting)), None)
    if other:
        raise RequestError(f"{path / CONFIG}: {other} is set: this adapter is more than B A; merge it with PEFT")
    later = next((setting for setting, value in config.items() if value and setting not in _KNOWN), None)
    if later:
        raise RequestError(
            f"{path / CONFIG}: {later} is a setting that is not known here; merge this adapter with PEFT"
        )
    if config.get("bias", "none") != "none":
        raise RequestError(f"{path / CONFIG}: bias {config['bias']!r} is set: merge this adapter with PEFT")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise RequestError(f"{path / CONFIG}: {start} trains over a base of its own; merge this adapter with PEFT")
    return config


def _by_pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """PEFT's rule: the first pattern that is the end of the module's name, from a dot on."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _sum_dtype(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32

"""The names of edited and extrapolated models, as they stand in tables and paths."""

import re
from dataclasses import dataclass
from typing import Literal

_RANK = re.compile(r"^rank_(?P<rank>[1-9]\d*)(?P<suffix>_unscaled|_random)?$")
IN_SCOPE_FULL = "in_scope_full"


@dataclass(frozen=True)
class AblationVariant:
    """An edit of one checkpoint's update. ``rank`` None keeps the whole in-scope update."""

    name: str
    rank: int | None
    rescale: Literal["frobenius", "none"] = "frobenius"
    directions: Literal["true", "random"] = "true"
    scale: float = 1.0  # a further factor on the update, after rescaling


def parse_ablation(name: str) -> AblationVariant:
    """The edit that a variant's name stands for.

    Raises:
        ValueError: the name is none of in_scope_full, rank_K, rank_K_unscaled, rank_K_random.
    """
    if name == IN_SCOPE_FULL:
        return AblationVariant(name, rank=None)
    match = _RANK.match(name)
    if not match:
        raise ValueError(
            f"{name!r} is not a variant: use in_scope_full, rank_K, rank_K_unscaled or rank_K_random, with K from 1"
        )
    suffix = match["suffix"]
    return AblationVariant(
        name,
        rank=int(match["rank"]),
        rescale="none" if suffix == "_unscaled" else "frobenius",
        directions="random" if suffix == "_random" else "true",
    )


def window_variant(window: float, method: str) -> str:
    """The variant name of a model that a method predicts from a window, such as window_0.4_alpharl."""
    return f"window_{window:g}_{method}"

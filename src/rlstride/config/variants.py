"""The names of edited and extrapolated models, as they stand in tables and paths.

An edited model's name is ``UPDATE[_CONTROL][_bf16][_as_rank_K][_xSCALE][_in_SCOPE]``:

    rank_4, rank_10pct      the 4 leading triplets of each matrix, or max(1, int(0.1 min(m, n))) of them
    single_2                the second triplet alone
    full                    the whole update, of a part of the matrices: full_in_mlp; in_scope_full is that of all
    rounding_noise          what rounding base and step to bfloat16 adds to the update: their rounded difference without
                            its part along the update; rounding_noise_unscaled at its own norm
    base_bf16               the base rounded to bfloat16: what _bf16 models start from
    _unscaled               as the truncation leaves it; without it, the edit has the whole update's norm
    _random, _random_u, _random_v   random directions on both sides, or on one
    _bottom                 the triplets at the other end of the spectrum
    _bf16                   of base and step as bfloat16 files have them, every tensor rounded
    _as_rank_4              the whole update at the norm that its 4 leading triplets have: rank_4_unscaled's null
    _x0.7                   a further factor on the update, of every tensor that is the step's
    _in_attention, _in_mlp, _in_third_1 .. 3   only these matrices; _in_all: all, and every tensor out of scope too
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import yaml

from rlstride.config.methods import METHODS
from rlstride.errors import RequestError, first_line

Directions = Literal["true", "random", "random_u", "random_v", "bottom"]
Source = Literal["stored", "bf16", "rounding"]
Scope = Literal["linear", "attention", "mlp", "third_1", "third_2", "third_3", "all"]
IN_SCOPE_FULL = "in_scope_full"
SCOPES: tuple[Scope, ...] = get_args(Scope)
_NAME = re.compile(
    r"(?:(?P<whole>in_scope_full|full|rounding_noise|base)|rank_(?P<rank>[1-9]\d*)|rank_(?P<percent>[1-9]\d*)pct"
    r"|single_(?P<single>[1-9]\d*))"
    r"(?P<control>_unscaled|_random|_random_u|_random_v|_bottom)?"
    r"(?P<bf16>_bf16)?"
    r"(?:_as_rank_(?P<norm_of>[1-9]\d*))?"
    r"(?:_x(?P<scale>\d+(?:\.\d+)?))?"
    r"(?:_in_(?P<scope>[a-z]+(?:_\d)?))?"
)
USAGE = (
    "in_scope_full, full, rank_K, rank_Ppct, single_I, rounding_noise or base_bf16; then perhaps _unscaled, _random, "
    "_random_u, _random_v or _bottom (of rank_K), _bf16, _as_rank_K (of the whole update), a factor such as _x0.7, and "
    "a scope such as _in_mlp"
)


@dataclass(frozen=True)
class AblationVariant:
    """An edit of one checkpoint's update.

    Attributes:
        name: as it stands in tables.
        rank: triplets kept of each matrix; None keeps the whole update, unless ``percent`` says how many.
        percent: triplets kept in per cent of the smaller side.
        first: the first triplet that is kept, from 1.
        rescale: whether the edit gets the whole update's norm.
        directions: of the update, or a control's.
        scale: a further factor on the update, after rescaling.
        scope: the matrices that are edited.
        source: the update of the files as stored; that of base and step rounded to bfloat16, on the rounded base; or
            what rounding adds to the update, on the base as stored.
        norm_of: the whole update gets the norm of this many leading triplets, as the truncation leaves them.
    """

    name: str
    rank: int | None
    rescale: Literal["frobenius", "none"] = "frobenius"
    directions: Directions = "true"
    scale: float = 1.0
    percent: float | None = None
    first: int = 1
    scope: Scope = "linear"
    source: Source = "stored"
    norm_of: int | None = None

    @property
    def control(self) -> str:
        """The name without factor and scope: a control has the same directions whatever these are."""
        return re.sub(r"(?:_x[\d.]+)?(?:_in_[a-z]+(?:_\d)?)?$", "", self.name)

    def kept(self, shape: tuple[int, ...]) -> int | None:
        """How many triplets of a matrix are kept; None where all are, without decomposing it."""
        if self.percent is not None:
            return max(1, int(min(shape) * self.percent / 100))
        return None if self.rank is None else min(self.rank, min(shape))

    def needed(self, shape: tuple[int, ...]) -> int:
        """How many leading triplets have to be known for the edit."""
        if self.directions == "bottom":
            return min(shape)
        kept = self.kept(shape)
        if kept is None:
            return min(self.norm_of or 0, min(shape))
        return min(self.first - 1 + kept, min(shape))


def is_variant(name: object) -> bool:
    """Whether a name stands for an edit."""
    try:
        return isinstance(name, str) and bool(parse_ablation(name))
    except ValueError:
        return False


def parse_ablation(name: str) -> AblationVariant:
    """The edit that a variant's name stands for.

    Raises:
        ValueError: the name does not stand for one.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} is not a variant: use {USAGE}")
    whole, control, scope = match["whole"], (match["control"] or "")[1:], match["scope"]
    if scope is not None and scope not in SCOPES[1:]:
        raise ValueError(f"{name!r}: no scope is called {scope!r}: use {', '.join(SCOPES[1:])}")
    if problem := _problem(match):
        raise ValueError(f"{name!r} is not a variant: {problem}")
    return AblationVariant(
        name,
        rank=1 if match["single"] else int(match["rank"]) if match["rank"] else None,
        percent=int(match["percent"]) if match["percent"] else None,
        first=int(match["single"] or 1),
        rescale="none" if control == "unscaled" else "frobenius",
        directions="true" if control in ("", "unscaled") else cast(Directions, control),
        scale=0.0 if whole == "base" else float(match["scale"] or 1),
        scope=cast(Scope, scope or "linear"),
        source="rounding" if whole == "rounding_noise" else "bf16" if match["bf16"] else "stored",
        norm_of=int(match["norm_of"]) if match["norm_of"] else None,
    )


def _problem(parts: re.Match[str]) -> str | None:
    """Why the parts of a name do not go together; None where they do."""
    whole, control, scope = parts["whole"], (parts["control"] or "")[1:], parts["scope"]
    if whole == "base" and parts[0] != "base_bf16":
        return "the base has no update; base_bf16 is the base rounded to bfloat16"
    if whole == "rounding_noise":
        if control not in ("", "unscaled") or parts["bf16"] or parts["norm_of"] or scope == "all":
            return "rounding_noise takes _unscaled, a factor and a scope other than all"
        return None
    if whole in ("full", "in_scope_full") and (whole == "full") != (scope is not None):
        return "full needs a scope (full_in_mlp), in_scope_full takes none"
    if control and (whole or parts["single"]):
        return f"{control} is a control of rank_K"
    if parts["norm_of"] and not whole:
        return f"as_rank_{parts['norm_of']} is a norm of the whole update (in_scope_full_as_rank_{parts['norm_of']})"
    if parts["percent"] and int(parts["percent"]) > 100:
        return "there are no more than 100 per cent"
    return None


def read_variants(text: str, flag: str = "--variants") -> list[AblationVariant]:
    """Edits by name, as the command line gives them.

    Args:
        text: names with commas between them, or the path of a YAML file: a list of names, or a mapping whose
            ``variants`` is one.
        flag: whose value it is.

    Raises:
        RequestError: a name stands for no edit, one stands twice, or the file cannot be read.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RequestError(f"{flag}: {path}: {first_line(error)}") from error
        names = found.get("variants") if isinstance(found, dict) else found
    else:
        names = [part.strip() for part in text.split(",") if part.strip()]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{flag}: expected names of edits, such as rank_1,in_scope_full, not {text!r}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RequestError(f"{flag}: {twice} is named twice")
    try:
        return [parse_ablation(name) for name in names]
    except ValueError as error:
        raise RequestError(f"{flag}: {error}") from error


def window_variant(window: float, method: str) -> str:
    """The variant name of a model that a method makes from a window, such as window_0.4_alpharl; of the whole run, its
    own, such as full_shrunk.
    """
    known = METHODS.get(method)
    return method if known is not None and known.whole_run else f"window_{window:g}_{method}"


def jump_variant(name: str) -> str:
    """The variant name of an early stop, by its jump, such as jump_alpharl."""
    return f"jump_{name}"

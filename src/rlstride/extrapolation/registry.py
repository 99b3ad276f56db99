"""Extrapolation methods by name."""

from rlstride.errors import RequestError
from rlstride.extrapolation.alpharl import ALPHARL_ORACLE, ALPHARL_REPO, AlphaRL
from rlstride.extrapolation.controls import FIRST_UPDATE, NORM_ONLY, RANDOM_DIRECTION
from rlstride.extrapolation.coordinates import DMD, RELEX, TAYLOR
from rlstride.extrapolation.linear import Last, Linear
from rlstride.extrapolation.logits import Logits
from rlstride.extrapolation.method import Method
from rlstride.extrapolation.next_predictor import NEXT, NEXT_WITHOUT_G, NEXT_WITHOUT_L
from rlstride.extrapolation.validated import FIRST_UPDATE_VALIDATED, LINEAR_VALIDATED, LOGITS_VALIDATED, ValidatedNExt

_ALL: tuple[Method, ...] = (
    Last(),
    Linear(),
    LINEAR_VALIDATED,
    FIRST_UPDATE,
    FIRST_UPDATE_VALIDATED,
    NORM_ONLY,
    RANDOM_DIRECTION,
    AlphaRL(),
    ALPHARL_REPO,
    ALPHARL_ORACLE,
    RELEX,
    TAYLOR,
    DMD(),
    Logits(),
    LOGITS_VALIDATED,
    NEXT,
    ValidatedNExt(),
    NEXT_WITHOUT_G,
    NEXT_WITHOUT_L,
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        RequestError: there is none.
    """
    if name not in METHODS:
        raise RequestError(f"there is no extrapolation method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]

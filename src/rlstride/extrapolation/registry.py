"""Loads extrapolation methods; rlstride.config.methods has the list."""

from pkgutil import resolve_name

from rlstride.config import methods
from rlstride.errors import RequestError
from rlstride.extrapolation.method import Method


def _loaded(spec: methods.MethodSpec) -> Method:
    method = resolve_name(spec.make)
    if not isinstance(method, Method):
        raise RequestError(f"the extrapolation method {spec.name}: {spec.make} is no Method")
    return method


METHODS: dict[str, Method] = {name: _loaded(spec) for name, spec in methods.METHODS.items()}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        RequestError: there is none.
    """
    if name not in METHODS:
        raise RequestError(f"there is no extrapolation method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]

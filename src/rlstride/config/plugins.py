"""What other packages add to the lists of this one, by entry points."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from rlstride.errors import RequestError


class Named(Protocol):
    """Something that has a name."""

    @property
    def name(self) -> str:
        """As studies and tables say it."""
        ...


_Spec = TypeVar("_Spec", bound=Named)


@cache
def _installed() -> Any:  # another type in each version of Python
    """The entry points of all packages: looking for them takes 15 ms, and is done once."""
    return entry_points()


def with_plugins(group: str, kind: type[_Spec], own: Iterable[_Spec]) -> dict[str, _Spec]:
    """A list's entries by name: this package's own, then those of installed packages.

    Args:
        group: of the entry points, such as ``rlstride.methods``; each names an instance of ``kind``.
        kind: of the entries.
        own: this package's.

    Raises:
        RequestError: a package's entry cannot be loaded, is of another kind, or has a name that is taken.
    """
    known = {spec.name: spec for spec in own}
    for entry in _installed().select(group=group):
        try:
            spec = entry.load()
        except Exception as error:
            raise RequestError(f"the entry point {entry.name} of {group} cannot be loaded: {error}") from error
        if not isinstance(spec, kind):
            raise RequestError(f"the entry point {entry.name} of {group} is no {kind.__name__}")
        if spec.name in known:
            raise RequestError(f"the entry point {entry.name} of {group}: there is a {spec.name!r} already")
        known[spec.name] = spec
    return known

"""What each extra of the package holds, read from its metadata, and the one sentence said where it is missing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlstride.errors import RequestError

_PACKAGE = "rlstride"
_TOGETHER = {"all", "dev"}  # all other extras, and what only a developer needs: neither is what a user lacks


class ExtraError(RequestError, ImportError):
    """A package of an extra is missing, or of a version outside the range that this rlstride was tested with."""


def require(extra: str) -> None:
    """Checks that every package of an extra is installed in a version that was tested. Imports none of them.

    Args:
        extra: such as ``train``.

    Raises:
        ExtraError: names what is missing or of another version, and the command that mends it.
    """
    _refuse(packages_of(extra).values(), extra)


def require_versions(extra: str, *names: str) -> None:
    """Checks some packages of an extra that a caller has brought along: their versions, where they are installed.

    Raises:
        ExtraError: names what is of another version, and the command that mends it.
    """
    packages = packages_of(extra)
    _refuse([packages[name] for name in names if name in packages and _installed(name)], extra)


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Says which extra holds a package whose import fails for want of it.

    Raises:
        ExtraError: names the package, and the command that installs it.
        ModuleNotFoundError: no extra holds it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = canonicalize_name((error.name or "").partition(".")[0])
        for extra in metadata(_PACKAGE).get_all("Provides-Extra") or []:
            if extra in _TOGETHER:
                continue
            if found := packages_of(extra).get(name):
                try:
                    _refuse([found], extra)
                except ExtraError as named:
                    raise named from error
        raise


def packages_of(extra: str) -> dict[str, Requirement]:
    """What an extra adds to the package's dependencies, by canonical name."""
    found = map(Requirement, requires(_PACKAGE) or [])
    return {
        canonicalize_name(each.name): each
        for each in found
        if each.marker and each.marker.evaluate({"extra": extra}) and not each.marker.evaluate({"extra": ""})
    }


def _refuse(packages: Iterable[Requirement], extra: str) -> None:
    wrong = []
    for package in packages:
        installed = _installed(package.name)
        if installed is None:
            wrong.append(package.name)
        elif not package.specifier.contains(installed, prereleases=True):
            wrong.append(f"{package.name}{package.specifier} in place of {installed}")
    if wrong:
        raise ExtraError(f"needs {', '.join(wrong)}: pip install '{_PACKAGE}[{extra}]'")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

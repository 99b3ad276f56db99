"""Sections that come in kinds, such as algorithms: for each the keys it has, and the function that makes the thing.

A kind is a pydantic class under one decorator; unions, JSON schema, registries and ``rlstride list`` follow. It
imports nothing that is slow: what ``make`` names is loaded when it is needed. Another package adds a kind by an entry
point that names a :class:`Kind`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import Annotated, Any, TypeVar, Union, get_args

from pydantic import BaseModel, Field

from rlstride.config.plugins import with_plugins

Section = TypeVar("Section", bound=type[BaseModel])


@dataclass(frozen=True)
class Kind:
    """One kind of section.

    Attributes:
        section: its keys; the one that ``by`` names has the kind's name as its only value.
        make: MODULE:FUNCTION that makes the thing from the section.
        by: the key that tells kinds apart.
    """

    section: type[BaseModel]
    make: str
    by: str = "kind"

    @cached_property
    def name(self) -> str:
        """The value of the key that tells kinds apart."""
        [name] = get_args(self.section.model_fields[self.by].annotation)
        return str(name)

    @property
    def about(self) -> str:
        """What it is, in a sentence: the first of the section's docstring."""
        return first_paragraph(self.section.__doc__ or "")

    def load(self) -> Any:
        """The function that makes the thing."""
        return resolve_name(self.make)


def first_paragraph(text: str) -> str:
    """Of a docstring or description, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split())


class Kinds:
    """A list of kinds: this package's own, in the order of their classes, then those of other packages.

    Args:
        group: of the entry points by which others add kinds.
        by: the key that tells kinds apart.
    """

    def __init__(self, group: str, by: str = "kind") -> None:
        self._group, self._by = group, by
        self._own: list[Kind] = []

    def made_by(self, make: str) -> Callable[[Section], Section]:
        """Adds the class below it.

        Args:
            make: MODULE:FUNCTION that makes the thing from the section.
        """

        def add(section: Section) -> Section:
            self._own.append(Kind(section, make, self._by))
            return section

        return add

    def by_name(self) -> Mapping[str, Kind]:
        """All of them."""
        return with_plugins(self._group, Kind, self._own)


def union_of(known: Mapping[str, Kind]) -> Any:
    """The type of a key that takes a section of any of these kinds."""
    sections = tuple(kind.section for kind in known.values())
    [by] = {kind.by for kind in known.values()}
    return Annotated[Union[sections], Field(discriminator=by)]  # noqa: UP007

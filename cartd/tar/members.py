"""The files of a tar: a page of them as the store returns it, and the columns of an index."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

SEPARATOR = "\0"
"""A character that no path contains."""
PATHS_PER_STRING: Final = 250
"""Paths in one string: a reader of the tar splits so many at a time, about 20 KiB."""


class Members(Struct, frozen=True, gc=False):
    """Files of a tar in columns: sizes in bytes, ``mtimes`` in whole Unix seconds."""

    paths: list[str]
    """Relative and normalised: no empty, ``.`` or ``..`` component."""
    sizes: list[int]
    mtimes: list[int]
    hash_types: list[str]
    hash_sums: list[str]
    sums: list[str | None] = []
    """For a layout with a manifest: the hash of each by one algorithm, in hex; None without it."""


COLUMNS: Final = ("paths", "sizes", "mtimes", "hash_types", "hash_sums")
"""The columns of :class:`Members` that determine the bytes of the files and their headers."""


@dataclass(slots=True)
class Columns:
    """The members of a tar in order, as columns; many paths are joined into one string."""

    ends: array[int] = field(default_factory=lambda: array("q"))
    """Where the data of each would end if each header were one block, without the head of the tar.
    """
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes: array[int] = field(default_factory=lambda: array("q"))
    directories: array[int] = field(default_factory=lambda: array("i"))
    """How many directories precede the end of each, without those of the head."""
    joined: list[str] = field(default_factory=list)
    """The paths, joined by separators."""
    firsts: array[int] = field(default_factory=lambda: array("q"))
    """The number of the first member in each of these strings."""

    def paths(self, first: int) -> Iterator[str]:
        """Yield the paths from that of the member ``first`` on."""
        place = bisect_right(self.firsts, first) - 1
        for number in range(max(place, 0), len(self.joined)):
            paths = self.joined[number].split(SEPARATOR)
            yield from paths[first - self.firsts[number] :] if number == place else paths

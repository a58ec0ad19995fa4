"""Which byte of a cart's tar stands where, below any top folder.

Strategy: the columns say where the data of each member would end if every header were one block
and the top folder had none.  That is so for nearly all members of nearly all carts; which headers
are longer is kept aside, and one more sum (:class:`Shift`) says by how much the members behind
them are moved below the top folders of one variant (:meth:`Lengths.variant`).  So all names that
clients give to their downloads of a cart share the index, and most carts have one variant.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from sys import getsizeof

from cartd.tar.headers import BLOCK, header_length
from cartd.tar.lengths import PAX, Lengths, Shape, is_short

SEPARATOR = "\0"
"""What no path has in it."""


@dataclass(slots=True)
class Columns:
    """The members of a tar in their order; many paths are one string until one is asked for."""

    ends: array[int] = field(default_factory=lambda: array("q"))
    """Where the data of each would end if each header were one block, without the top's."""
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes: array[int] = field(default_factory=lambda: array("q"))
    directories: array[int] = field(default_factory=lambda: array("i"))
    """How many directories stand in the tar by the end of each, the top folder apart."""
    joined: list[str] = field(default_factory=list)
    """The paths, with separators between them."""
    firsts: array[int] = field(default_factory=lambda: array("q"))
    """The number of the first member in each of these strings."""

    def paths(self, first: int) -> Iterator[str]:
        """Give the paths from that of the member ``first`` on."""
        place = bisect_right(self.firsts, first) - 1
        for number in range(max(place, 0), len(self.joined)):
            paths = self.joined[number].split(SEPARATOR)
            yield from paths[first - self.firsts[number] :] if number == place else paths


@dataclass(slots=True)
class LongHeaders:
    """The headers that are longer than one block, of files and of directories in their order."""

    threes: array[int] = field(default_factory=lambda: array("i"))
    """The number of the member with which each comes that has three blocks always."""
    members: array[int] = field(default_factory=lambda: array("i"))
    """The same for those whose length depends on the top folder."""
    shapes: array[int] = field(default_factory=lambda: array("i"))
    """For each of these, the number of its shape in ``known``."""
    known: list[Shape] = field(default_factory=list)

    def next(self, number: int) -> int | None:
        """The first member from ``number`` on that has such a header, or comes with one."""
        found = [
            members[place]
            for members in (self.threes, self.members)
            if (place := bisect_left(members, number)) < len(members)
        ]
        return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the members are moved below the top folders of one variant."""

    short: bool
    sums: array[int]
    """Bytes that the headers of ``LongHeaders.members``, up to each, have more than is usual."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TarIndex:
    """The members of a cart, whose tar has the same bytes whenever and wherever it is made."""

    members: Columns
    times: array[int]
    """Modification times of the directories: of the top folder, then in their order."""
    long: LongHeaders
    lengths: Lengths
    digest: str
    """SHA-256 of all that the tar follows from, beside the top folder and the layout."""

    def shift(self, top: str) -> Shift:
        """What depends on the name ``top``; the same for all names of its variant.

        It takes time where many headers are long.
        """
        short = is_short(top)
        length = len(top.encode())
        more = [shape.more(length, short=short) for shape in self.long.known]
        sums = accumulate(map(more.__getitem__, self.long.shapes))
        return Shift(short, array("q", sums))

    def end(self, number: int, top: str, shift: Shift) -> int:
        """Where the data of the member ``number`` ends in the tar below ``top``; -1: its start."""
        begin = header_length(f"{top}/", 0, 0)
        if number < 0:
            return begin
        long = self.long
        end = begin + self.members.ends[number]
        if shift.short:
            end += bisect_right(long.threes, number) * PAX
        else:
            end += (number + 1 + self.members.directories[number]) * PAX
        place = bisect_right(long.members, number)
        return end + (shift.sums[place - 1] if place else 0)

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes."""
        members, long = self.members, self.long
        arrays = (
            members.ends, members.sizes, members.mtimes, members.directories, members.firsts,
            self.times, long.threes, long.members, long.shapes,
        )  # fmt: skip
        return sum(map(getsizeof, arrays)) + sum(map(getsizeof, members.joined)) + BLOCK

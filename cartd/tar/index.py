"""The index of a cart's tar: the position of every member, below any top folder.

Strategy: the columns hold where the data of each member would end if every header were one block
and the top folder had none.  That is correct for nearly all members of nearly all carts; longer
headers are listed separately, and a list of sums (:class:`Shift`) holds by how much they shift the
members after them, for the top folders of one variant (:meth:`Lengths.variant`).  So one index
serves all names that clients choose for the download of a cart, and most carts have one variant.
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
"""A character that no path contains."""


@dataclass(slots=True)
class Columns:
    """The members of a tar in order, as columns; many paths are joined into one string."""

    ends: array[int] = field(default_factory=lambda: array("q"))
    """Where the data of each would end if each header were one block, without the top folder's."""
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes: array[int] = field(default_factory=lambda: array("q"))
    directories: array[int] = field(default_factory=lambda: array("i"))
    """How many directories precede the end of each, without the top folder."""
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


@dataclass(slots=True)
class LongHeaders:
    """The headers of files and directories, in order, that are longer than one block."""

    threes: array[int] = field(default_factory=lambda: array("i"))
    """For each header that always has three blocks, the number of its member."""
    members: array[int] = field(default_factory=lambda: array("i"))
    """The same for those whose length depends on the top folder."""
    shapes: array[int] = field(default_factory=lambda: array("i"))
    """For each of these, the number of its shape in ``known``."""
    known: list[Shape] = field(default_factory=list)

    def next(self, number: int) -> int | None:
        """Return the first member from ``number`` on that has such a header."""
        found = [
            members[place]
            for members in (self.threes, self.members)
            if (place := bisect_left(members, number)) < len(members)
        ]
        return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the members are shifted below the top folders of one variant."""

    short: bool
    sums: array[int]
    """Bytes by which the headers of ``LongHeaders.members``, up to each, exceed the usual ones."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TarIndex:
    """The members of a cart's tar; the tar's bytes follow from it and the top folder alone."""

    members: Columns
    times: array[int]
    """Modification times of the directories: of the top folder, then in their order."""
    long: LongHeaders
    lengths: Lengths
    digest: str
    """SHA-256 of everything that determines the tar, except the top folder and the layout."""

    def shift(self, top: str) -> Shift:
        """Return the shift below ``top``, which is the same for all names of its variant.

        Slow if there are many long headers.
        """
        short = is_short(top)
        length = len(top.encode())
        more = [shape.more(length, short=short) for shape in self.long.known]
        sums = accumulate(map(more.__getitem__, self.long.shapes))
        return Shift(short, array("q", sums))

    def end(self, number: int, top: str, shift: Shift) -> int:
        """Return where the data of member ``number`` ends below ``top``; -1: the first start."""
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
        """Bytes of memory that the index takes."""
        members, long = self.members, self.long
        arrays = (
            members.ends, members.sizes, members.mtimes, members.directories, members.firsts,
            self.times, long.threes, long.members, long.shapes,
        )  # fmt: skip
        return sum(map(getsizeof, arrays)) + sum(map(getsizeof, members.joined)) + BLOCK

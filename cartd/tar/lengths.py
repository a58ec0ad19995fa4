"""The length of a cart's tar below any top folder, without its members.

The name of the top folder is part of every member's name, but the length of a header depends only
on the number of bytes of the name, and on whether all are ASCII.  A header is one block if its
ustar fields hold the name: for a path of at most 100 ASCII characters below any top folder of at
most 155.  Such tops are called short here.  Below others, every name has a pax record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from msgspec import Struct, json

from cartd.tar.headers import (
    BLOCK,
    NAME_BYTES,
    PREFIX_BYTES,
    header_length,
    length_with,
    record_length,
)

RECORD: Final = 20 * BLOCK
"""The whole tar is padded to a multiple of this (POSIX pax, the default for files)."""
MAX_TOP: Final = 255
"""Bytes of a name that the common file systems allow."""
PAX: Final = 2 * BLOCK
"""What one block of pax records adds to a header."""


class Shape(Struct, frozen=True, gc=False):
    """What determines the length of a header, besides the top folder; hashable."""

    path: int
    """Bytes of the path below the top folder, with the final ``/`` of a directory."""
    longest_top: int
    """Bytes of the longest ASCII top folder with which the name fits into the ustar fields."""
    records: int = 0
    """Bytes of the pax records of its size and its time."""

    @classmethod
    def of(cls, path: str, records: int = 0) -> Shape:
        """Return the shape of a member with that path and so many bytes of other records."""
        raw = path.encode()
        if len(raw) > len(path):
            return cls(len(raw), 0, records)
        if len(raw) <= NAME_BYTES:
            return cls(len(raw), PREFIX_BYTES, records)
        slash = raw.find(b"/", len(raw) - NAME_BYTES - 1)
        splits = 0 <= slash < len(raw) - 1
        return cls(len(raw), max(PREFIX_BYTES - 1 - slash, 0) if splits else 0, records)

    @property
    def always_three(self) -> bool:
        """Whether the header has three blocks below every top folder."""
        most = self.records + record_length("path", MAX_TOP + 1 + self.path)
        return most <= BLOCK and (not self.longest_top or self.records > 0)

    def more(self, top: int, *, short: bool) -> int:
        """Return the bytes above the usual length: one block below a short top, else three.

        ``top`` is the bytes of the top folder.
        """
        records = self.records
        if not short or top > self.longest_top:
            records += record_length("path", top + 1 + self.path)
        return length_with(records) - (BLOCK if short else BLOCK + PAX)

    def steps(self, *, short: bool) -> dict[int, int]:
        """Return by how much :meth:`more` grows at which lengths of the top folder."""
        last = PREFIX_BYTES if short else MAX_TOP
        edges = [1, last + 1]
        if short and 0 < self.longest_top < last:
            edges.insert(1, self.longest_top + 1)
        found: dict[int, int] = {}
        before = 0
        for at, end in pairwise(edges):
            # Between two edges it only grows, block by block.
            while at < end:
                now = self.more(at, short=short)
                if now != before:
                    found[at] = now - before
                before = now
                tops = range(at, end)
                at += bisect_right(tops, now, key=lambda top: self.more(top, short=short))
        return found


class Lengths(Struct, frozen=True, array_like=True, gc=False):
    """The lengths of one cart's tars, as stored with the cart."""

    plain: int
    """Bytes up to the end of the last member's data if each header were one block, without the
    top folder's own."""
    headers: int
    """How many headers are among them."""
    threes: int
    """How many of them always have three blocks."""
    short: list[tuple[int, int]]
    """From which length of a short top on, how many more bytes the other headers have in total."""
    others: list[tuple[int, int]]
    """The same below other tops."""

    def length(self, top: str) -> int:
        """Return the bytes of the whole tar below ``top``."""
        end = self.plain + header_length(f"{top}/", 0, 0) + self.more(top)
        unpadded = end + -end % BLOCK + 2 * BLOCK
        return unpadded + -unpadded % RECORD

    def more(self, top: str) -> int:
        """Return the bytes of the headers beyond one block each."""
        steps, place = self._steps(top)
        usual = self.threes if is_short(top) else self.headers
        return usual * PAX + (steps[place - 1][1] if place else 0)

    def variant(self, top: str) -> tuple[bool, int]:
        """Return a key that is equal for all tops below which every header has the same length."""
        return is_short(top), self._steps(top)[1]

    def _steps(self, top: str) -> tuple[list[tuple[int, int]], int]:
        steps = self.short if is_short(top) else self.others
        return steps, bisect_right(steps, len(top.encode()), key=lambda step: step[0])

    def dumped(self) -> str:
        """Serialize to a JSON array."""
        return json.encode(self).decode()

    @classmethod
    def loaded(cls, text: str) -> Lengths:
        """Parse the result of ``dumped``."""
        return json.decode(text, type=cls)


def is_short(top: str) -> bool:
    """Whether ``top`` fits into the prefix of a ustar header, and needs no pax record."""
    return len(top) <= PREFIX_BYTES and top.isascii()


def steps_of(shapes: Mapping[Shape, int], *, short: bool) -> list[tuple[int, int]]:
    """Return the summed steps of so many headers of each of these shapes."""
    growth: dict[int, int] = {}
    for shape, number in shapes.items():
        for top, more in shape.steps(short=short).items():
            growth[top] = growth.get(top, 0) + number * more
    steps, sum_ = [], 0
    for top, more in sorted(growth.items()):
        sum_ += more
        steps.append((top, sum_))
    return steps

"""The index of a cart's tar: its length and the position of every member, below any top folder.

Strategy: the columns hold where the data of each member would end if every header were one block
and the tar had no head (:mod:`cartd.tar.layout`).  That is correct for nearly all members of nearly
all carts; longer headers are listed separately, and a list of sums (:class:`Shift`) holds by how
much they shift the members after them, for the top folders of one variant
(:meth:`Lengths.variant`).  So one index serves all names that clients choose for the download of a
cart, and most carts have one variant.
:class:`TarIndexBuilder` builds it from the cart's files, page by page.

:class:`Lengths` is stored with the cart and gives the length of the tar without its members.  The
name of the top folder is part of every member's name, but the length of a header depends only on
the number of bytes of the name, and on whether all are ASCII.  A header is one block if its ustar
fields hold the name: for a path of at most 100 ASCII characters below any top folder of at most
155.  Such tops are called short here.  Below others, every name has a pax record.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate, pairwise
from sys import getsizeof
from typing import Final

from msgspec import Struct, json, msgpack
from msgspec.structs import astuple

from cartd.tar.headers import (
    BLOCK,
    NAME_BYTES,
    NUMBER_LIMIT,
    PREFIX_BYTES,
    length_with,
    number_records_length,
    record_length,
)
from cartd.tar.layout import NO_CONTENT, TOP_FOLDER, HeadMember, Layout, PlainLayout, head_length
from cartd.tar.members import COLUMNS, PATHS_PER_STRING, SEPARATOR, Columns, Members

RECORD: Final = 20 * BLOCK
"""The whole tar is padded to a multiple of this (POSIX pax, the default for files)."""
MAX_TOP: Final = 255
"""Bytes of a name that the common file systems allow."""
PAX: Final = 2 * BLOCK
"""What one block of pax records adds to a header."""
PLAIN_HEAD: Final = ((TOP_FOLDER, 0),)
"""The head of most tars, as suffixes and sizes: the top folder."""
_NEVER: Final = -(2**63)
"""Earlier than any time."""


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
    head."""
    headers: int
    """How many headers are among them."""
    threes: int
    """How many of them always have three blocks."""
    short: list[tuple[int, int]]
    """From which length of a short top on, how many more bytes the other headers have in total."""
    others: list[tuple[int, int]]
    """The same below other tops."""
    head: tuple[tuple[str, int], ...] = PLAIN_HEAD
    """The suffix and the size of each member of the head."""

    def begin(self, top: str) -> int:
        """Return the bytes of the head below ``top``."""
        return head_length(top, self.head)

    def length(self, top: str) -> int:
        """Return the bytes of the whole tar below ``top``."""
        end = self.plain + self.begin(top) + self.more(top)
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
        """Serialize to a JSON array; without the head of most tars, which is the top folder."""
        values = astuple(self)
        return json.encode(values[:-1] if self.head == PLAIN_HEAD else values).decode()

    @classmethod
    def loaded(cls, text: str) -> Lengths:
        """Parse the result of ``dumped``."""
        return json.decode(text, type=cls)


def is_short(top: str) -> bool:
    """Whether ``top`` fits into the prefix of a ustar header, and needs no pax record."""
    return len(top) <= PREFIX_BYTES and top.isascii()


def steps_of(shapes: Mapping[Shape, int], *, short: bool) -> list[tuple[int, int]]:
    """Sum, over all shapes, the step function of each shape times its number of headers."""
    growth: dict[int, int] = {}
    for shape, number in shapes.items():
        for top, more in shape.steps(short=short).items():
            growth[top] = growth.get(top, 0) + number * more
    steps, sum_ = [], 0
    for top, more in sorted(growth.items()):
        sum_ += more
        steps.append((top, sum_))
    return steps


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

    layout: Layout
    head: Sequence[HeadMember]
    members: Columns
    times: array[int]
    """Modification times of the directories: of those of the head, then in their order."""
    long: LongHeaders
    lengths: Lengths
    source: str
    """SHA-256 of the files, and of what is known of the missing ones: equal in all layouts."""
    digest: str
    """SHA-256 of everything that determines the tar, except the top folder and the version of the
    layout."""

    def shift(self, top: str) -> Shift:
        """Return the shift below ``top``, which is the same for all names of its variant.

        Slow if there are many long headers.
        """
        short = is_short(top)
        length = len(top.encode())
        more = [shape.more(length, short=short) for shape in self.long.known]
        sums = accumulate(map(more.__getitem__, self.long.shapes))
        return Shift(short, array("q", sums))

    def end(self, number: int, shift: Shift) -> int:
        """Return where the data of member ``number`` ends, from the end of the head; 0 for -1."""
        if number < 0:
            return 0
        long = self.long
        end = self.members.ends[number]
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
        columns = sum(map(getsizeof, arrays)) + sum(map(getsizeof, members.joined))
        return columns + sum(member.content.weight for member in self.head) + BLOCK


class TarIndexBuilder:
    """Computes the positions of members by a running sum, and stores them in compact columns.

    Every directory occurs once, before the first member below it, with the time of the newest file
    below it.  The manifest ensures that paths are unique.
    """

    def __init__(self, layout: Layout | None = None) -> None:
        """``layout``: :class:`PlainLayout` by default."""
        self._layout: Layout = layout or PlainLayout()
        self._prefix = self._layout.prefix
        self._columns = Columns()
        self._long = LongHeaders()
        self._end = 0
        self._numbers = {"": 0}
        """Of the directories that are in the tar already."""
        self._parents = [0]
        self._times = [_NEVER]
        """The newest of the files in each directory itself."""
        self._shapes: dict[Shape, int] = {}
        self._digests = [sha256() for _ in COLUMNS]
        """One for each column, so that they do not depend on the size of pages."""

    def add(self, members: Members) -> None:
        """Add members.

        Raises :class:`ValueError` for a path that is not normalised or a size below zero; the
        builder must not be used afterwards.
        """
        paths, sizes, mtimes = members.paths, members.sizes, members.mtimes
        if not paths:
            return
        for digest, name in zip(self._digests, COLUMNS, strict=True):
            digest.update(_values(getattr(members, name)))
        _check(paths, sizes)
        columns, times = self._columns, self._times
        first = len(columns.ends)
        for place in range(0, len(paths), PATHS_PER_STRING):
            columns.firsts.append(first + place)
            columns.joined.append(SEPARATOR.join(paths[place : place + PATHS_PER_STRING]))
        columns.sizes.extend(sizes)
        columns.mtimes.extend(mtimes)
        plain = _all_plain(members, NAME_BYTES - len(self._prefix))
        end, last, directory = self._end, None, 0
        directories = len(times)
        for number, (path, size, mtime) in enumerate(zip(paths, sizes, mtimes, strict=True), first):
            end += -end % BLOCK
            parent = path.rpartition("/")[0]
            if parent != last:
                last, directory = parent, self._directory(parent, number)
                end += (len(times) - directories) * BLOCK
                directories = len(times)
            if times[directory] < mtime:
                times[directory] = mtime
            end += size + BLOCK
            if not plain:
                records = number_records_length(size, mtime)
                self._record_header(number, Shape.of(f"{self._prefix}{path}", records))
            columns.ends.append(end)
            columns.directories.append(directories - 1)
        self._end = end
        self._layout.add(members)

    def index(self) -> TarIndex:
        """Return the index of all members; none may be added afterwards."""
        long, columns = self._long, self._columns
        number = len(columns.ends)
        times = self._newest()
        shapes = Counter(long.shapes)
        counted = {shape: shapes[place] for shape, place in self._shapes.items()}
        layout = self._layout
        head = layout.head(columns)
        lengths = Lengths(
            self._end,
            number + len(times) - 1,
            len(long.threes),
            steps_of(counted, short=True),
            steps_of(counted, short=False),
            tuple((member.suffix, member.content.size) for member in head),
        )
        source = sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()
        if layout.missing is not None:
            source = _digest_of(source, layout.mtime, layout.missing.digest)
        computed = [
            (member.suffix, member.content.digest)
            for member in head
            if member.content not in (NO_CONTENT, layout.missing)
        ]
        digest = _digest_of(source, layout.mtime, computed) if computed else source
        return TarIndex(layout, head, columns, times, long, lengths, source, digest)

    def _directory(self, path: str, member: int) -> int:
        """Return the number of a directory; a new one is added with its parents."""
        numbers = self._numbers
        found = numbers.get(path)
        if found is not None:
            return found
        new = []
        while path not in numbers:
            new.append(path)
            path = path.rpartition("/")[0]
        number = numbers[path]
        for path in reversed(new):
            self._parents.append(number)
            number = numbers[path] = len(self._times)
            self._times.append(_NEVER)
            self._record_header(member, Shape.of(f"{self._prefix}{path}/"))
        return number

    def _record_header(self, member: int, shape: Shape) -> None:
        """Record the header of ``member``, or of a directory before it, unless it is one block."""
        if shape.always_three:
            self._long.threes.append(member)
        elif shape.path > NAME_BYTES or shape.records:
            number = self._shapes.get(shape)
            if number is None:
                number = self._shapes[shape] = len(self._long.known)
                self._long.known.append(shape)
            self._long.members.append(member)
            self._long.shapes.append(number)

    def _newest(self) -> array[int]:
        """Return the time of each directory: the newest below it, within the range of a field."""
        times = self._times
        for number in range(len(times) - 1, 0, -1):  # no directory comes before its parent
            parent = self._parents[number]
            times[parent] = max(times[parent], times[number])
        return array("q", [min(max(time, 0), NUMBER_LIMIT - 1) for time in times])


def _digest_of(*values: object) -> str:
    return sha256(msgpack.encode(values)).hexdigest()


def _values(column: list[str] | list[int]) -> memoryview:
    """Return the concatenated values in msgpack, in which each value's end is unambiguous."""
    encoded = msgpack.encode(column)
    head = 1 if len(column) < 16 else 3 if len(column) < 2**16 else 5
    return memoryview(encoded)[head:]


def _check(paths: Sequence[str], sizes: Sequence[int]) -> None:
    if not _normalised(paths):
        bad = next(path for path in paths if not _normalised([path]))
        raise ValueError(f"not a normalised relative path: {bad!r}")
    if min(sizes) < 0:
        raise ValueError(f"not a member of a tar: {paths[sizes.index(min(sizes))]!r}, {min(sizes)}")


def _normalised(paths: Sequence[str]) -> bool:
    """Whether no path has a NUL, or a component that is empty, ``.`` or ``..``."""
    framed = f"/{f'/{SEPARATOR}/'.join(paths)}/"
    return framed.count(SEPARATOR) == len(paths) - 1 and not any(
        bad in framed for bad in ("//", "/./", "/../")
    )


def _all_plain(members: Members, longest: int) -> bool:
    """Whether every header is one block below a short top; rarely false, and cheap to test.

    ``longest`` is the longest path, in bytes, that fits with the prefix of its layout.
    """
    return (
        all(map(str.isascii, members.paths))
        and max(map(len, members.paths)) <= longest
        and max(members.sizes) < NUMBER_LIMIT
        and 0 <= min(members.mtimes) <= max(members.mtimes) < NUMBER_LIMIT
    )

"""The tar of a cart, computed: its length, its ETag and the bytes of any range.

Strategy: after the head of its layout (:mod:`cartd.tar.layout`), member ``n`` covers the bytes from
the end of the data of member ``n - 1`` to the end of its own: padding, the directories that first
occur with it, its header, its data.
:mod:`cartd.tar.index` builds the columns of the index, 28 bytes and the path of each
member; headers are built whenever they are needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from msgspec import Struct, msgpack

from cartd.model import TarFacts
from cartd.tar.headers import BLOCK, DIRECTORY, FILE
from cartd.tar.index import Shift, TarIndex
from cartd.tar.layout import PlainLayout, head_name

LAYOUT_VERSION: Final = 1
"""The version of :class:`PlainLayout`, as recorded with carts."""
assert PlainLayout().version == LAYOUT_VERSION


class Literal(Struct, frozen=True, gc=False):
    """Literal bytes of the tar: headers, padding, the end."""

    data: bytes


class Slice(Struct, frozen=True, gc=False):
    """``length`` bytes at ``offset`` of the file ``path``, which has ``size`` bytes."""

    path: str
    size: int
    offset: int
    length: int


def etag(layout: int | str, digest: str, top: str) -> str:
    """Return the ETag, strong and quoted: tars with the same ETag have the same bytes.

    ``digest`` is :attr:`TarIndex.digest`.
    """
    return f'"{sha256(msgpack.encode((layout, top, digest))).hexdigest()}"'


def tar_facts(index: TarIndex, now: float) -> TarFacts:
    """Return what is recorded with a cart about its tar, valid from ``now`` on (Unix time)."""
    return TarFacts(LAYOUT_VERSION, index.digest, index.lengths.dumped(), now)


@dataclass(frozen=True, slots=True)
class VirtualTar:
    """POSIX pax tar of the head and the members of ``index`` in order, below the folder ``top``.

    Every directory occurs once, before the first member below it, with the time of the newest file
    below it.
    """

    top: str
    index: TarIndex
    shift: Shift
    """The offsets of the members for ``top``; tops of the same variant share one."""
    _begin: int = field(init=False, repr=False, compare=False)
    """Bytes of the head."""

    def __post_init__(self) -> None:
        """Raises :class:`ValueError` if ``top`` is not the name of a folder."""
        if "/" in self.top or "\0" in self.top or self.top in ("", ".", ".."):
            raise ValueError(f"not the name of a folder: {self.top!r}")
        object.__setattr__(self, "_begin", self.index.lengths.begin(self.top))

    @property
    def length(self) -> int:
        """Bytes of the whole tar, padded to a multiple of 10,240 as by tarfile."""
        return self.index.lengths.length(self.top)

    @property
    def etag(self) -> str:
        """The ETag, from :func:`etag`."""
        return etag(self.index.layout.version, self.index.digest, self.top)

    def segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        """Return the bytes from ``start`` up to ``stop`` as a lazy iterator of non-empty segments.

        The time to find the start does not depend on its position.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"no bytes {start} to {stop} in a tar of {self.length}")
        return self._segments(start, stop)

    def data_offset(self, number: int) -> int:
        """Return where the data of member ``number`` begins."""
        return self._end(number) - self.index.members.sizes[number]

    def first_member(self, position: int) -> int:
        """Return the first member whose data ends behind ``position``."""
        return bisect_right(range(len(self.index.members.sizes)), position, key=self._end)

    def _segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        members = self.index.members
        sizes, mtimes, directories = members.sizes, members.mtimes, members.directories
        first = self.first_member(start)
        at = self._end(first - 1)
        if start < self._begin:
            yield from self._head(start, stop)
        known_directories = directories[first - 1] if first else 0
        odd = self._next_odd(first)
        prefix = self._prefix
        for number, path in enumerate(members.paths(first), first):
            if at >= stop:
                return
            size = sizes[number]
            padding = -at % BLOCK
            if number == odd or directories[number] != known_directories:
                known_directories = directories[number]
                head = self._long_head(number, path, padding)
                self._check(number, at + len(head) + size)
                odd = self._next_odd(number + 1)
            else:
                head = FILE.plain(prefix + path, size, mtimes[number], _ZEROS[:padding])
            end = at + len(head) + size
            if start <= at and end <= stop:
                yield Literal(head)
                if size:
                    yield Slice(path, size, 0, size)
            else:
                yield from _cut(head, path, size, start - at, stop - at)
            at = end
        self._check(len(sizes) - 1, at)
        if at < stop and (data := bytes(min(stop, self.length) - max(start, at))):
            yield Literal(data)

    def _end(self, number: int) -> int:
        return self._begin + self.index.end(number, self.shift)

    @property
    def _prefix(self) -> str:
        """What precedes the path of each file in its name."""
        return f"{self.top}/{self.index.layout.prefix}"

    def _check(self, number: int, end: int) -> None:
        if end != (planned := self._end(number)):
            raise RuntimeError(f"member {number} ends at {end}, {planned} planned")

    def _next_odd(self, number: int) -> int | None:
        """Return the first member from ``number`` on that has or follows a long header."""
        return self.index.long.next(number) if self.shift.short else number

    def _long_head(self, number: int, path: str, padding: int) -> bytes:
        """Build the bytes before the data of a member: padding, new directories, its header."""
        members = self.index.members
        parts = [_ZEROS[:padding]]
        last = members.directories[number]
        fresh = last - (members.directories[number - 1] if number else 0)
        components = path.split("/")
        for place in range(fresh):
            depth = len(components) - fresh + place
            folder = self._prefix + "/".join([*components[:depth], ""])
            parts.append(DIRECTORY.header(folder, 0, self.index.times[last - fresh + place + 1]))
        size, mtime = members.sizes[number], members.mtimes[number]
        parts.append(FILE.header(self._prefix + path, size, mtime))
        return b"".join(parts)

    def _head(self, start: int, stop: int) -> Iterator[Literal]:
        """Yield the bytes from ``start`` up to ``stop``, as far as they are in the head."""
        at = 0
        for member in self.index.head:
            name, content = head_name(self.top, member.suffix), member.content
            if name.endswith("/"):
                header = DIRECTORY.header(name, 0, self.index.times[0])
            else:
                header = FILE.header(name, content.size, self.index.layout.mtime)
            if data := header[max(start - at, 0) : max(stop - at, 0)]:
                yield Literal(data)
            at += len(header)
            begin, finish = max(start - at, 0), min(stop - at, content.size)
            if begin < finish:
                yield from map(Literal, content.read(begin, finish))
            at += content.size
            padding = _ZEROS[: -at % BLOCK]
            if data := padding[max(start - at, 0) : max(stop - at, 0)]:
                yield Literal(data)
            at += len(padding)
            if at >= stop:
                return


def segments_in(
    stored: VirtualTar, name: str, tar: VirtualTar, start: int, stop: int
) -> Iterator[Literal | Slice]:
    """Return the segments of ``tar``, whose files are read from another tar of the same members.

    That is ``stored``, in a file called ``name``.
    """
    sizes = tar.index.members.sizes
    number = tar.first_member(start)
    for piece in tar.segments(start, stop):
        if isinstance(piece, Literal):
            yield piece
            continue
        while not sizes[number]:  # a file without bytes has no slice, each other one has one
            number += 1
        offset = stored.data_offset(number) + piece.offset
        yield Slice(name, stored.length, offset, piece.length)
        number += 1


_ZEROS: Final = bytes(BLOCK)


def _cut(head: bytes, path: str, size: int, start: int, stop: int) -> Iterator[Literal | Slice]:
    """Yield the bytes ``start`` to ``stop`` of a member's head and data; both may lie outside."""
    if data := head[max(start, 0) : stop]:
        yield Literal(data)
    begin, finish = max(start - len(head), 0), min(stop - len(head), size)
    if begin < finish:
        yield Slice(path, size, begin, finish - begin)

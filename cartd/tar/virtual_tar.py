"""The tar of a cart as arithmetic: which byte stands where, before any file is opened.

Strategy: member ``n`` covers the bytes from the end of the data of member ``n - 1`` to the end of
its own: the padding that it finds, the directories that first occur with it, its header, its data.
:mod:`cartd.tar.index_builder` makes the columns that are kept, 28 bytes and the path of each
member; headers are built again whenever they are asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from msgspec import Struct, msgpack

from cartd.model import TarFacts
from cartd.tar.headers import BLOCK, DIRECTORY, FILE
from cartd.tar.index import Shift, TarIndex

LAYOUT_VERSION: Final = 1
"""The number of the layout: whoever changes a byte of any tar raises it, wherever the change is.

It is part of every ETag, so that no client joins the bytes of two layouts into one file.
"""


class Literal(Struct, frozen=True, gc=False):
    """Bytes of the tar as they are: headers, padding, the end."""

    data: bytes


class Slice(Struct, frozen=True, gc=False):
    """``length`` bytes at ``offset`` of the file ``path``, which has ``size`` bytes in all."""

    path: str
    size: int
    offset: int
    length: int


def etag(layout: int, digest: str, top: str) -> str:
    """Strong and quoted: two tars with the same one are the same bytes.

    ``digest`` is that of the members (:attr:`TarIndex.digest`).
    """
    return f'"{sha256(msgpack.encode((layout, top, digest))).hexdigest()}"'


def tar_facts(index: TarIndex, now: float) -> TarFacts:
    """What is recorded with a cart of the tar that it has from ``now`` on, in Unix time."""
    return TarFacts(LAYOUT_VERSION, index.digest, index.lengths.dumped(), now)


@dataclass(frozen=True, slots=True)
class VirtualTar:
    """POSIX pax tar of the members of ``index`` in their order, all of them below ``top``.

    Every directory stands once, before the first member below it, with the time of the newest file
    below it.
    """

    top: str
    index: TarIndex
    shift: Shift
    """Of that index and that top, or of another top of the same variant."""

    def __post_init__(self) -> None:
        """Raises :class:`ValueError` if ``top`` is not the name of a folder."""
        if "/" in self.top or "\0" in self.top or self.top in ("", ".", ".."):
            raise ValueError(f"not the name of a folder: {self.top!r}")

    @property
    def length(self) -> int:
        """Bytes of the whole tar, with its end padded to 10,240 as tarfile does."""
        return self.index.lengths.length(self.top)

    @property
    def etag(self) -> str:
        """As :func:`etag` gives it."""
        return etag(LAYOUT_VERSION, self.index.digest, self.top)

    def segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        """Give the bytes from ``start`` up to ``stop``, lazily; none of the pieces is empty.

        A late range is found as quickly as an early one.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"no bytes {start} to {stop} in a tar of {self.length}")
        return self._segments(start, stop)

    def _segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        members = self.index.members
        sizes, mtimes, directories = members.sizes, members.mtimes, members.directories
        first = bisect_right(range(len(sizes)), start, key=self._end)
        at = self._end(first - 1)
        if start < at and (data := self._top_folder()[start:stop]):
            yield Literal(data)
        known_directories = directories[first - 1] if first else 0
        odd = self._next_odd(first)
        prefix = f"{self.top}/"
        for number, path in enumerate(members.paths(first), first):
            if at >= stop:
                return
            size = sizes[number]
            padding = -at % BLOCK
            if number == odd or directories[number] != known_directories:
                known_directories = directories[number]
                head = self._head(number, path, padding)
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
        return self.index.end(number, self.top, self.shift)

    def _check(self, number: int, end: int) -> None:
        if end != (planned := self._end(number)):
            raise RuntimeError(f"member {number} ends at {end}, {planned} planned")

    def _next_odd(self, number: int) -> int | None:
        """The first member from ``number`` on whose header, or what comes before it, is special."""
        return self.index.long.next(number) if self.shift.short else number

    def _head(self, number: int, path: str, padding: int) -> bytes:
        """Build what stands before the data of a member: padding, new directories, its header."""
        members = self.index.members
        parts = [_ZEROS[:padding]]
        last = members.directories[number]
        fresh = last - (members.directories[number - 1] if number else 0)
        components = path.split("/")
        for place in range(fresh):
            depth = len(components) - fresh + place
            folder = "/".join([self.top, *components[:depth], ""])
            parts.append(DIRECTORY.header(folder, 0, self.index.times[last - fresh + place + 1]))
        size, mtime = members.sizes[number], members.mtimes[number]
        parts.append(FILE.header(f"{self.top}/{path}", size, mtime))
        return b"".join(parts)

    def _top_folder(self) -> bytes:
        return DIRECTORY.header(f"{self.top}/", 0, self.index.times[0])


_ZEROS: Final = bytes(BLOCK)


def _cut(head: bytes, path: str, size: int, start: int, stop: int) -> Iterator[Literal | Slice]:
    """Give ``start`` to ``stop`` of a member's head and data; both may lie outside."""
    if data := head[max(start, 0) : stop]:
        yield Literal(data)
    begin, finish = max(start - len(head), 0), min(stop - len(head), size)
    if begin < finish:
        yield Slice(path, size, begin, finish - begin)

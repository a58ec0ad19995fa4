"""The tar of a cart as arithmetic: which byte stands where, before any file is opened.

Strategy: member ``n`` covers the bytes from the end of the data of member ``n - 1`` to the end of
its own: the padding that it finds, the directories that first occur with it, its header, its data.
:mod:`cartd.tar.layout` makes the columns that are kept, 28 bytes and the path of each member;
headers are built again whenever they are asked for.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE, NUL

from msgspec import Struct

from cartd.tar.headers import DIRECTORY, FILE

SEPARATOR = "\0"
"""What no path has in it."""


class Literal(Struct, frozen=True, gc=False):
    """Bytes of the tar as they are: headers, padding, the end."""

    data: bytes


class Slice(Struct, frozen=True, gc=False):
    """``length`` bytes at ``offset`` of the file ``path``, which has ``size`` bytes in all."""

    path: str
    size: int
    offset: int
    length: int


@dataclass(slots=True)
class Columns:
    """The members of a tar in their order; many paths are one string until one is asked for."""

    ends: array[int] = field(default_factory=lambda: array("q"))
    """Where the data of each ends in the tar."""
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes: array[int] = field(default_factory=lambda: array("q"))
    fresh: array[int] = field(default_factory=lambda: array("i"))
    """How many of the directories above each occur first with it."""
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """POSIX pax tar of ``members`` in their order, all of them below the folder ``top``.

    Every directory stands once, before the first member below it, and has the modification time
    ``created``.
    """

    top: str
    created: int
    members: Columns
    length: int
    """Bytes of the whole tar, with its end padded to 10,240 as tarfile does."""
    etag: str
    """Strong and quoted: two bundles with the same one are the same bytes."""

    def segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        """Give the bytes from ``start`` up to ``stop``, lazily; none of the pieces is empty.

        A late range is found as quickly as an early one.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"no bytes {start} to {stop} in a tar of {self.length}")
        return self._segments(start, stop)

    def _segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        ends, sizes = self.members.ends, self.members.sizes
        first = bisect_right(ends, start)
        at = ends[first - 1] if first else 0
        for number, path in enumerate(self.members.paths(first), first):
            if at >= stop:
                return
            end, size = ends[number], sizes[number]
            head = self._head(number, path, at, end - size)
            if start <= at and end <= stop:
                yield Literal(head)
                if size:
                    yield Slice(path, size, 0, size)
            else:
                yield from _cut(head, path, size, start - at, stop - at)
            at = end
        if at < stop and (data := self._tail(at)[max(start - at, 0) : stop - at]):
            yield Literal(data)

    def _head(self, number: int, path: str, start: int, stop: int) -> bytes:
        """Build what stands before the data of a member: padding, new directories, its header."""
        size, mtime = self.members.sizes[number], self.members.mtimes[number]
        name = f"{self.top}/{path}"
        padding = -start % BLOCKSIZE
        if stop - start == padding + BLOCKSIZE:  # the one block of a plain header, nothing else
            return FILE.plain(name, size, mtime, _ZEROS[:padding])
        parts = [_ZEROS[:padding]]
        if not number:
            parts.append(self._directory(""))
        if fresh := self.members.fresh[number]:
            components = path.split("/")
            for depth in range(len(components) - fresh, len(components)):
                parts.append(self._directory("/".join([*components[:depth], ""])))
        parts.append(FILE.header(name, size, mtime))
        head = b"".join(parts)
        if len(head) != stop - start:
            raise RuntimeError(f"header of {path!r}: {len(head)} bytes, {stop - start} planned")
        return head

    def _directory(self, path: str) -> bytes:
        return DIRECTORY.header(f"{self.top}/{path}", 0, self.created)

    def _tail(self, start: int) -> bytes:
        """Build what stands behind the data of the last member."""
        top = b"" if start else self._directory("")
        return top + NUL * (self.length - start - len(top))


_ZEROS = NUL * BLOCKSIZE


def _cut(head: bytes, path: str, size: int, start: int, stop: int) -> Iterator[Literal | Slice]:
    """Give ``start`` to ``stop`` of a member's head and data; both may lie outside."""
    if data := head[max(start, 0) : stop]:
        yield Literal(data)
    begin, finish = max(start - len(head), 0), min(stop - len(head), size)
    if begin < finish:
        yield Slice(path, size, begin, finish - begin)

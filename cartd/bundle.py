"""The tar of a cart as arithmetic: which byte stands where, before any file is opened.

Strategy: a layout is one running sum.  Member ``n`` covers the bytes from the end of the data of
member ``n - 1`` to the end of its own: the padding that it finds, the directories that first occur
with it, its header, its data.  Only these ends (8 bytes a member) and the numbers of new
directories (4 bytes) are kept; headers are built again whenever they are asked for.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from tarfile import BLOCKSIZE, DIRTYPE, LENGTH_NAME, NUL, PAX_FORMAT, RECORDSIZE, REGTYPE, TarInfo

from msgspec import Struct


class Member(Struct, frozen=True, gc=False):
    """One file of the tar: sizes in bytes, ``mtime`` in whole Unix seconds."""

    path: str
    """Relative and normalised: no empty, ``.`` or ``..`` component."""
    size: int
    mtime: int
    hash_type: str
    hash_sum: str


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes of the tar as they are: headers, padding, the end."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Slice:
    """``length`` bytes at ``offset`` of the file ``path``, which has ``size`` bytes in all."""

    path: str
    size: int
    offset: int
    length: int


class Bundle:
    """POSIX pax tar of ``members`` in their order, all of them below the folder ``top``.

    Equal, byte for byte, to what :mod:`tarfile` writes for the same members.  Every directory
    stands once, before the first member below it, and has the modification time ``created``.
    ``members`` is kept, not copied, and must not change.  That no two members claim one path is
    the manifest's matter.  Raises :class:`ValueError` for a path that is not normalised.
    """

    length: int
    """Bytes of the whole tar, with its end padded to 10,240 as tarfile does."""
    etag: str
    """Strong and quoted: two bundles with the same one are the same bytes."""

    def __init__(self, members: Sequence[Member], *, top: str, created: int) -> None:
        if "/" in top or top in _NO_COMPONENT or _NUL in top:
            raise ValueError(f"not the name of a folder: {top!r}")
        self._members = members
        self._top = top
        self._created = created
        self._ends = array("q")
        self._fresh = array("i")
        end = self._lay_out()
        unpadded = end + -end % BLOCKSIZE + 2 * BLOCKSIZE
        self.length = unpadded + -unpadded % RECORDSIZE
        self.etag = _etag(members, top, created)

    def segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        """Give the bytes from ``start`` up to ``stop``, lazily; none of the pieces is empty.

        A late range is found as quickly as an early one.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"no bytes {start} to {stop} in a tar of {self.length}")
        return self._segments(start, stop)

    def _segments(self, start: int, stop: int) -> Iterator[Literal | Slice]:
        first = bisect_right(self._ends, start)
        at = self._ends[first - 1] if first else 0
        for number in range(first, len(self._ends)):
            if at >= stop:
                return
            member, end = self._members[number], self._ends[number]
            head = self._head(number, at, end - member.size)
            if data := head[max(start - at, 0) : stop - at]:
                yield Literal(data)
            at = end - member.size
            begin, finish = max(start - at, 0), min(stop - at, member.size)
            if begin < finish:
                yield Slice(member.path, member.size, begin, finish - begin)
            at = end
        if at < stop and (data := self._tail(at)[max(start - at, 0) : stop - at]):
            yield Literal(data)

    def _lay_out(self) -> int:
        """Fill the arrays; give where the data of the last member ends."""
        known: set[str] = set()
        prefix = f"{self._top}/"
        end = _header_length(prefix, 0, self._created)
        for member in self._members:
            path, size = member.path, member.size
            parent, below, name = path.rpartition("/")
            if name in _NO_COMPONENT or _NUL in path or size < 0:
                raise ValueError(f"not a member of a tar: {member!r}")
            end += -end % BLOCKSIZE
            fresh = length = 0
            if below and parent not in known:
                fresh, length = self._enter(parent, known)
            end += length + _header_length(prefix + path, size, member.mtime) + size
            self._ends.append(end)
            self._fresh.append(fresh)
        return end

    def _enter(self, directory: str, known: set[str]) -> tuple[int, int]:
        """Note ``directory`` and its parents; give how many are new and their headers' bytes."""
        components = directory.split("/")
        if not _NO_COMPONENT.isdisjoint(components):
            raise ValueError(f"not a normalised relative path: {directory!r}")
        fresh = length = 0
        while components and (path := "/".join(components)) not in known:
            known.add(path)
            fresh += 1
            length += _header_length(f"{self._top}/{path}/", 0, self._created)
            components.pop()
        return fresh, length

    def _head(self, number: int, start: int, stop: int) -> bytes:
        """Build what stands before the data of a member: padding, new directories, its header."""
        member = self._members[number]
        parts = [NUL * (-start % BLOCKSIZE)]
        if not number:
            parts.append(_DIRECTORY.header(f"{self._top}/", 0, self._created))
        if fresh := self._fresh[number]:
            components = member.path.split("/")
            for depth in range(len(components) - fresh, len(components)):
                path = "/".join([self._top, *components[:depth], ""])
                parts.append(_DIRECTORY.header(path, 0, self._created))
        parts.append(_FILE.header(f"{self._top}/{member.path}", member.size, member.mtime))
        head = b"".join(parts)
        if len(head) != stop - start:
            raise RuntimeError(f"header of {member!r}: {len(head)} bytes, {stop - start} planned")
        return head

    def _tail(self, start: int) -> bytes:
        """Build what stands behind the data of the last member."""
        top = b"" if self._ends else _DIRECTORY.header(f"{self._top}/", 0, self._created)
        return top + NUL * (self.length - start - len(top))


_NO_COMPONENT = frozenset({"", ".", ".."})
_NUL = NUL.decode()
_NUMBER_LIMIT = 8**11
"""What eleven octal digits cannot hold: larger sizes and times go into a pax record."""


def _is_plain(name: str, size: int, mtime: int) -> bool:
    """Whether one ustar block says it all, so that tarfile writes no pax records."""
    return (
        len(name) <= LENGTH_NAME
        and name.isascii()
        and size < _NUMBER_LIMIT
        and 0 <= mtime < _NUMBER_LIMIT
    )


def _header_length(name: str, size: int, mtime: int) -> int:
    """Bytes of a member's header: one block, or three and more with pax records (POSIX pax)."""
    if _is_plain(name, size, mtime):
        return BLOCKSIZE
    records = 0
    if not name.isascii() or len(name) > LENGTH_NAME:
        records += _record_length("path", len(name.encode()))
    if size >= _NUMBER_LIMIT:
        records += _record_length("size", len(str(size)))
    if not 0 <= mtime < _NUMBER_LIMIT:
        records += _record_length("mtime", len(str(mtime)))
    return 2 * BLOCKSIZE + records + -records % BLOCKSIZE


def _record_length(keyword: str, value_length: int) -> int:
    """Bytes of ``"LENGTH KEYWORD=VALUE\\n"``, where LENGTH counts its own digits too."""
    rest = len(keyword) + value_length + 3
    length = rest + len(str(rest))
    return rest + len(str(length))


class _Kind:
    """Headers of files, or of directories.

    tarfile takes 20 µs for a header.  For a plain one, all but the name, the size and the time
    is the same for every member, so it is cut out of a block that tarfile made; the checksum is
    the sum of the block's bytes, its own field counted as eight spaces (POSIX ustar).
    """

    def __init__(self, type_flag: bytes, mode: int) -> None:
        self._type = type_flag
        self._mode = mode
        block = self._by_tarfile("", 0, 0)
        self._owner, self._rest = block[100:124], block[156:]
        self._sum = sum(self._owner) + sum(self._rest) + 8 * ord(" ")

    def header(self, name: str, size: int, mtime: int) -> bytes:
        """Build the header blocks, equal to :meth:`tarfile.TarInfo.tobuf`."""
        if not _is_plain(name, size, mtime):
            return self._by_tarfile(name, size, mtime)
        raw = name.encode()
        numbers = b"%011o\0%011o\0" % (size, mtime)
        checksum = b"%06o\0 " % (self._sum + sum(raw) + sum(numbers))
        return raw.ljust(LENGTH_NAME, NUL) + self._owner + numbers + checksum + self._rest

    def _by_tarfile(self, name: str, size: int, mtime: int) -> bytes:
        info = TarInfo(name)
        info.type, info.mode, info.size, info.mtime = self._type, self._mode, size, mtime
        return info.tobuf(PAX_FORMAT)


_FILE = _Kind(REGTYPE, 0o644)
_DIRECTORY = _Kind(DIRTYPE, 0o755)


def _etag(members: Sequence[Member], top: str, created: int) -> str:
    """Digest all that the bytes follow from; every text has its length before it."""
    digest = sha256(f"{len(top)}:{top}{created};".encode())
    rest = iter(members)
    while batch := list(islice(rest, 1000)):
        described = [
            f"{len(m.path)}:{m.path}{len(m.hash_type)}:{m.hash_type}"
            f"{len(m.hash_sum)}:{m.hash_sum}{m.size},{m.mtime};"
            for m in batch
        ]
        digest.update("".join(described).encode())
    return f'"{digest.hexdigest()}"'

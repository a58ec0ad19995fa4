"""Parser of a tar that arrives in parts: bytes in, events out, no I/O.

::

    tar = TarStream()
    for part in parts:
        for event in tar.feed(part):
            ...  # a Member, memoryviews of its content, END_OF_MEMBER
    tar.close()

Reads what cartd, Pacifica Cartd, Python and GNU tar write: ustar, pax (POSIX) and GNU headers, with
regular files and directories.  Everything else (links, devices, sparse files, data after the end)
raises :class:`TarError`: no cart contains it, and what is not understood cannot be verified.

A hostile tar costs no memory: a header has a limit, and content is passed on as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Union
from zlib import adler32

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Bytes of the pax records, or of the GNU long name, of one member."""
MAX_SIZE = 2**63 - 1
_MAX_NS = 2**33 * 10**9
"""Times are kept within so many nanoseconds of 1970, some 272 years."""


class TarError(ValueError):
    """The bytes are not a tar as one of a cart can be; the message says where."""


class Member(NamedTuple):
    """A file or a directory of the tar."""

    name: str
    """As in the tar, without the ``/`` at the end of a directory; bytes that are not UTF-8 are
    surrogates, as by :func:`os.fsdecode`.  Not safe as a path."""
    size: int
    mtime_ns: int
    mode: int
    is_directory: bool
    start: int
    """Offset of its first header block."""
    data: int
    """Offset of its content."""

    @property
    def end(self) -> int:
        """Offset of the next member: the end of the content and its padding."""
        return self.data + self.size + -self.size % BLOCK


class EndOfMember:
    """The content of the member is complete."""


END_OF_MEMBER = EndOfMember()
Event = Union[Member, memoryview, EndOfMember]


class TarStream:
    """The state of one parser."""

    def __init__(self, offset: int = 0) -> None:
        """``offset``: where a member begins; the first byte that is fed is at this offset."""
        self.offset = offset
        """Offset of the next byte that is fed."""
        self._buffer = bytearray()
        self._needed = BLOCK
        self._remaining = 0
        self._padding = 0
        self._in_member = False
        self._extension = b""
        self._start = offset
        self._records: dict[str, bytes] = {}
        self._long_name: bytes | None = None
        self._zero_blocks = 0

    @classmethod
    def inside(cls, member: Member, offset: int) -> TarStream:
        """Return a parser that continues at ``offset``, within the content of ``member``.

        Its first event is content, or END_OF_MEMBER if the offset is that of the content's end.
        """
        if not member.data <= offset <= member.data + member.size:
            raise ValueError(f"{offset} is not in the content of the member at {member.start}")
        tar = cls(offset)
        tar._start = member.end
        tar._begin_content(member.size, member.data + member.size - offset)
        return tar

    @classmethod
    def ended(cls, offset: int) -> TarStream:
        """Return a parser of a tar that has been read to its end."""
        tar = cls(offset)
        tar._zero_blocks = 2
        return tar

    @property
    def is_complete(self) -> bool:
        """Whether the end of the archive has been seen: two blocks of zeros."""
        return self._zero_blocks >= 2

    def close(self) -> None:
        """Check that the tar is complete; raises :class:`TarError`."""
        if not self.is_complete or self._buffer:
            raise TarError(f"the tar ends at byte {self.offset:,}, before its end mark")

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events of ``data``; the iterator has to be read to its end.

        Views of content are of ``data`` itself.

        :raises TarError: the tar is invalid, or has what no cart has.
        """
        view = memoryview(data)
        while True:
            if self._in_member:
                part = view[: self._remaining]
                if part:
                    view = self._consume(view, len(part))
                    self._remaining -= len(part)
                    yield part
                if self._remaining:
                    return
                self._in_member = False
                yield END_OF_MEMBER
            skipped = min(self._padding, len(view))
            self._padding -= skipped
            view = self._consume(view, skipped)
            if not view:
                return
            missing = self._needed - len(self._buffer)
            self._buffer += view[:missing]
            view = self._consume(view, missing)
            if len(self._buffer) < self._needed:
                return
            block = bytes(self._buffer)
            self._buffer.clear()
            member = self._block(block)
            if member is not None:
                self._begin_content(member.size, member.size)
                yield member

    def _consume(self, view: memoryview, length: int) -> memoryview:
        self.offset += min(length, len(view))
        return view[length:]

    def _begin_content(self, size: int, remaining: int) -> None:
        self._in_member = True
        self._remaining = remaining
        self._padding = -size % BLOCK

    def _block(self, block: bytes) -> Member | None:
        """Take a header block, or the body of an extension; return the member that is complete."""
        if self._extension:
            self._take_extension(block)
            return None
        if self._zero_blocks:
            if block.count(0) != BLOCK:
                raise self._error("data after the end mark")
            self._zero_blocks += 1
            return None
        if block[0] == 0 and block.count(0) == BLOCK:
            if self._records or self._long_name is not None:
                raise self._error("an extended header without a member")
            self._zero_blocks = 1
            return None
        return self._header(block)

    def _header(self, block: bytes) -> Member | None:
        if block[257:265] not in (b"ustar\x0000", b"ustar  \0"):
            raise self._error("no header of a tar")
        # The low half of Adler-32 is one plus the sum of the bytes, modulo 65,521 (RFC 1950).
        total = (adler32(block) & 0xFFFF) - (adler32(block[148:156]) & 0xFFFF) + 8 * 32
        if (total - self._number(block[148:156], "checksum")) % 65521:
            raise self._error("a header with a wrong checksum")
        size = self._number(block[124:136], "size")
        kind = block[156:157]
        if kind == b"0" and not self._records and self._long_name is None:
            name = _short_name(block)
            if name and 0 <= size <= MAX_SIZE:
                return self._plain(name, size, block)
        if kind in (b"x", b"g", b"L"):
            self._begin_extension(kind, size)
            return None
        return self._extended(kind, size, block)

    def _extended(self, kind: bytes, size: int, block: bytes) -> Member:
        """Return a member that may have records, or is no file, or is wrong."""
        records, self._records = self._records, {}
        long_name, self._long_name = self._long_name, None
        size = self._size(size, records.get("size"))
        raw = records.get("path", long_name)
        if raw is None:
            raw = _short_name(block)
        is_directory = kind == b"5" or (kind == b"\0" and raw.endswith(b"/"))
        if is_directory:
            raw = raw.rstrip(b"/")
            if size:
                raise self._error("a directory with content")
        elif kind not in (b"0", b"\0", b"7"):
            what = _KINDS.get(kind, f"a member of the unknown type {kind!r}")
            raise self._error(f"{what}: {raw[:200].decode(errors='replace')!r}")
        if not raw or b"\0" in raw:
            raise self._error("a name that is empty or has a NUL")
        start, self._start = self._start, self.offset + size + -size % BLOCK
        return Member(
            raw.decode("utf-8", "surrogateescape"),
            size,
            self._time(block[136:148], records.get("mtime")),
            self._number(block[100:108], "mode") & 0o7777,
            is_directory,
            start,
            self.offset,
        )

    def _plain(self, name: bytes, size: int, block: bytes) -> Member:
        """Return a file of which the header says all, as of most."""
        start, self._start = self._start, self.offset + size + -size % BLOCK
        return Member(
            name.decode("utf-8", "surrogateescape"),
            size,
            self._time(block[136:148], None),
            self._number(block[100:108], "mode") & 0o7777,
            False,
            start,
            self.offset,
        )

    def _begin_extension(self, kind: bytes, size: int) -> None:
        if not 0 < size <= MAX_EXTENSION:
            raise self._error("an extended header of an impossible size")
        if (kind == b"x" and self._records) or (kind == b"L" and self._long_name is not None):
            raise self._error("two extended headers for one member")
        self._extension = kind
        self._extension_size = size
        self._needed = size + -size % BLOCK

    def _take_extension(self, body: bytes) -> None:
        kind, self._extension = self._extension, b""
        self._needed = BLOCK
        body = body[: self._extension_size]
        if kind == b"L":
            self._long_name = body.rstrip(b"\0")
        elif kind == b"x":
            self._records = self._parse_records(body)
        elif _DECISIVE.intersection(self._parse_records(body)):
            # Other global records, such as the comment of an archive by git, change no member.
            raise self._error("a global header that changes members")

    def _parse_records(self, body: bytes) -> dict[str, bytes]:
        """Return the pax records ``LENGTH KEYWORD=VALUE\\n`` by keyword."""
        records: dict[str, bytes] = {}
        at = 0
        while at < len(body):
            match = _RECORD.match(body, at)
            end = at + int(match[1]) if match else 0
            if not match or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
                raise self._error("invalid pax records")
            keyword = match[2].decode("utf-8", "replace")
            if keyword.startswith("GNU.sparse."):
                raise self._error("a sparse file")
            if keyword in _DECISIVE:
                records[keyword] = body[match.end() : end - 1]
            at = end
        # Not empty, so that a second header for the same member is noticed.
        records.setdefault("", b"")
        return records

    def _number(self, field: bytes, what: str) -> int:
        """Return the number in octal digits, or in base 256 (GNU tar)."""
        number = _parse_number(field)
        if number is None:
            raise self._error(f"a header with an invalid {what}")
        return number

    def _size(self, size: int, record: bytes | None) -> int:
        if record is not None:
            if not re.fullmatch(rb"[0-9]{1,19}", record):
                raise self._error("an invalid size in the pax records")
            size = int(record)
        if not 0 <= size <= MAX_SIZE:
            raise self._error("a size that no file has")
        return size

    def _time(self, field: bytes, record: bytes | None) -> int:
        """Return the time in nanoseconds, within the limits."""
        if record is None:
            ns = self._number(field, "time") * 1_000_000_000
        else:
            match = re.fullmatch(rb"(-?)([0-9]{1,20})(?:\.([0-9]{0,30}))?", record)
            if not match:
                raise self._error("an invalid time in the pax records")
            ns = int(match[2]) * 10**9 + int((match[3] or b"")[:9].ljust(9, b"0"))
            ns = -ns if match[1] else ns
        return max(-_MAX_NS, min(ns, _MAX_NS))

    def _error(self, what: str) -> TarError:
        return TarError(f"the tar has {what}, before byte {self.offset:,}")


def _short_name(block: bytes) -> bytes:
    """Return the name in a header, with the prefix that POSIX has and GNU has not."""
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[263:265] == b"00" else b""
    return prefix + b"/" + name if prefix else name


_DECISIVE = frozenset({"path", "size", "mtime", "linkpath"})
"""The records that decide what a member is."""
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"K": "a link with a long target",
    b"S": "a sparse file",
}


@lru_cache(maxsize=4096)
def _parse_number(field: bytes) -> int | None:
    """Return the number in a field; cached, as most files have the mode, and many the time, of
    others.
    """
    match = _OCTAL.fullmatch(field)
    if match:
        return int(match[1] or b"0", 8)
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    return None


_OCTAL = re.compile(rb"[ ]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]{1,200})=")

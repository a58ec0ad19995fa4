"""Header blocks of tar members: POSIX pax, with ustar fields that are correct by themselves.

Many programs that read tars ignore pax records, so every ustar field holds the correct value where
it can, and pax records are added only where POSIX requires them.  The bytes depend only on the
arguments, not on the version of Python.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final
from zlib import adler32

BLOCK: Final = 512
"""Bytes of a header block; data is padded to as many (POSIX ustar)."""
NAME_BYTES: Final = 100
PREFIX_BYTES: Final = 155
"""The sizes of the two fields of a name: ``PREFIX/NAME`` if the prefix is not empty."""
NUMBER_LIMIT: Final = 8**11
"""Limit of eleven octal digits: sizes and times from here on have a pax record."""
_OCTAL_LIMIT: Final = 8**12
"""Limit of twelve octal digits, without a NUL after them."""
_PAX_NAME: Final = "././@PaxHeader"
_DIGEST: Final = 12
"""Hex digits at the end of a truncated name."""


def split(name: bytes) -> tuple[bytes, bytes] | None:
    """Return the fields prefix and name that hold ``name``; None if it cannot be split.

    The prefix is as short as possible.
    """
    if len(name) <= NAME_BYTES:
        return b"", name
    slash = name.find(b"/", len(name) - NAME_BYTES - 1)
    if 0 < slash <= PREFIX_BYTES and slash < len(name) - 1:
        return name[:slash], name[slash + 1 :]
    return None


def header_length(name: str, size: int, mtime: int) -> int:
    """Return the bytes of a member's header: one block, or three and more with pax records."""
    raw = name.encode()
    records = number_records_length(size, mtime)
    if len(raw) > len(name) or split(raw) is None:
        records += record_length("path", len(raw))
    return length_with(records)


def length_with(records: int) -> int:
    """Return the bytes of a header with ``records`` bytes of pax records."""
    return 2 * BLOCK + records + -records % BLOCK if records else BLOCK


def number_records_length(size: int, mtime: int) -> int:
    """Return the bytes of the pax records of a size and a time; 0 for most."""
    records = 0
    if size >= NUMBER_LIMIT:
        records += record_length("size", len(str(size)))
    if not 0 <= mtime < NUMBER_LIMIT:
        records += record_length("mtime", len(str(mtime)))
    return records


def record_length(keyword: str, value_length: int) -> int:
    """Return the bytes of ``"LENGTH KEYWORD=VALUE\\n"``; LENGTH includes its own digits."""
    rest = len(keyword) + value_length + 3
    length = rest + len(str(rest))
    return rest + len(str(length))


class Headers:
    """Builds the headers of one type of member: files, directories, or pax records.

    Only name, size and time differ between the members of a type.  The checksum is the sum of the
    block's bytes, with its own field counted as eight spaces (POSIX ustar).
    """

    def __init__(self, type_flag: bytes, mode: int) -> None:
        self._owner = b"%07o\0%07o\0%07o\0" % (mode, 0, 0)
        # The fields before the prefix: type, empty link name, magic and version, empty names of
        # owner and group, no device.
        self._rest = type_flag + bytes(100) + b"ustar\x0000" + bytes(80)
        self._no_prefix = self._rest + bytes(BLOCK - 156 - len(self._rest))
        self._sum = sum(self._owner) + sum(self._rest) + 8 * ord(" ")

    def header(self, name: str, size: int, mtime: int) -> bytes:
        """Build the header blocks; the name of a directory ends in ``/``."""
        raw = name.encode()
        fields = split(raw)
        records = b""
        if fields is None or not raw.isascii():
            records += _record(b"path", raw)
        if size >= NUMBER_LIMIT:
            records += _record(b"size", b"%d" % size)
        if not 0 <= mtime < NUMBER_LIMIT:
            records += _record(b"mtime", b"%d" % mtime)
            mtime = 0
        block = self._block(*(fields or (b"", _cut(raw))), _size_field(size), mtime)
        if not records:
            return block
        records_block = _RECORDS.plain(_PAX_NAME, len(records), 0)
        return records_block + records + bytes(-len(records) % BLOCK) + block

    def plain(self, name: str, size: int, mtime: int, before: bytes = b"") -> bytes:
        """Build the header of a member that needs only one block, preceded by ``before``.

        The name is ASCII.
        """
        raw = name.encode()
        numbers = b"%011o\0%011o\0" % (size, mtime)
        # The low half of Adler-32 is one plus the sum of the bytes, if that is below 65,521
        # (RFC 1950): these are at most 280 bytes of ASCII.
        if len(raw) <= NAME_BYTES:
            checksum = self._sum + (adler32(raw + numbers) & 0xFFFF) - 1
            field = raw.ljust(NAME_BYTES, b"\0")
            rest = self._no_prefix
            return b"%b%b%b%b%06o\0 %b" % (before, field, self._owner, numbers, checksum, rest)
        slash = raw.find(b"/", len(raw) - NAME_BYTES - 1)  # as split() does
        checksum = self._sum + (adler32(raw + numbers) & 0xFFFF) - 1 - ord("/")
        return b"%b%b%b%b%06o\0 %b%b" % (
            before,
            raw[slash + 1 :].ljust(NAME_BYTES, b"\0"),
            self._owner,
            numbers,
            checksum,
            self._rest,
            raw[:slash].ljust(BLOCK - 156 - len(self._rest), b"\0"),
        )

    def _block(self, prefix: bytes, name: bytes, size: bytes, mtime: int) -> bytes:
        numbers = b"%b%011o\0" % (size, mtime)
        # Not by Adler-32: the sum of bytes that are not ASCII may exceed its range.
        checksum = self._sum + sum(name) + sum(numbers) + sum(prefix)
        rest = self._rest + prefix
        block = b"%b%b%b%06o\0 %b" % (
            name.ljust(NAME_BYTES, b"\0"),
            self._owner,
            numbers,
            checksum,
            rest,
        )
        return block.ljust(BLOCK, b"\0")


def _size_field(size: int) -> bytes:
    """Return the size in octal with or without a NUL, or in base 256 (GNU tar, libarchive).

    Readers without pax support use this field even if a pax record has the size: with zero in it
    they would read the member's data as further headers.
    """
    if size < NUMBER_LIMIT:
        return b"%011o\0" % size
    if size < _OCTAL_LIMIT:
        return b"%012o" % size
    return b"\x80" + size.to_bytes(11, "big")


def _record(keyword: bytes, value: bytes) -> bytes:
    length = record_length(keyword.decode(), len(value))
    return b"%d %b=%b\n" % (length, keyword, value)


def _cut(name: bytes) -> bytes:
    """Return the truncated name for readers that ignore the pax record of a long name.

    It ends in a digest, so that two long names with the same beginning stay different.
    """
    whole = name[: NAME_BYTES - _DIGEST - 1].decode(errors="ignore").encode()
    return b"%b~%b" % (whole, sha256(name).hexdigest()[:_DIGEST].encode())


FILE = Headers(b"0", 0o644)
DIRECTORY = Headers(b"5", 0o755)
_RECORDS = Headers(b"x", 0)

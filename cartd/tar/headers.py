"""The header blocks of a tar's members, equal byte for byte to tarfile's (POSIX pax)."""

from __future__ import annotations

from tarfile import BLOCKSIZE, DIRTYPE, LENGTH_NAME, NUL, PAX_FORMAT, REGTYPE, TarInfo
from zlib import adler32

NUMBER_LIMIT = 8**11
"""What eleven octal digits cannot hold: larger sizes and times go into a pax record."""


def header_length(name: str, size: int, mtime: int) -> int:
    """Bytes of a member's header: one block if it is plain, or three and more with pax records.

    Plain is what one ustar block says in full, so that tarfile writes no pax records.
    """
    records = 0
    if not name.isascii() or len(name) > LENGTH_NAME:
        records += _record_length("path", len(name.encode()))
    if size >= NUMBER_LIMIT:
        records += _record_length("size", len(str(size)))
    if not 0 <= mtime < NUMBER_LIMIT:
        records += _record_length("mtime", len(str(mtime)))
    return 2 * BLOCKSIZE + records + -records % BLOCKSIZE if records else BLOCKSIZE


def _record_length(keyword: str, value_length: int) -> int:
    """Bytes of ``"LENGTH KEYWORD=VALUE\\n"``, where LENGTH counts its own digits too."""
    rest = len(keyword) + value_length + 3
    length = rest + len(str(rest))
    return rest + len(str(length))


class Headers:
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
        if header_length(name, size, mtime) == BLOCKSIZE:
            return self.plain(name, size, mtime)
        return self._by_tarfile(name, size, mtime)

    def plain(self, name: str, size: int, mtime: int, before: bytes = b"") -> bytes:
        """Build the one block of a member that is known to be plain, with ``before`` before it."""
        raw = name.encode()
        numbers = b"%011o\0%011o\0" % (size, mtime)
        # The low half of Adler-32 is one and the sum of the bytes, while that is below 65,521
        # (RFC 1950): these are at most 124 bytes of ASCII.
        checksum = self._sum + (adler32(raw + numbers) & 0xFFFF) - 1
        field = raw.ljust(LENGTH_NAME, NUL)
        return b"%b%b%b%b%06o\0 %b" % (before, field, self._owner, numbers, checksum, self._rest)

    def _by_tarfile(self, name: str, size: int, mtime: int) -> bytes:
        info = TarInfo(name)
        info.type, info.mode, info.size, info.mtime = self._type, self._mode, size, mtime
        return info.tobuf(PAX_FORMAT)


FILE = Headers(REGTYPE, 0o644)
DIRECTORY = Headers(DIRTYPE, 0o755)

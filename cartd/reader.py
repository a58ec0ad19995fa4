"""The bytes of a bundle from the volume; blocking, for a thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from cartd.bundle import Literal, Slice
from cartd.errors import VolumeDamaged

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Missing, below something that is no directory, or a symbolic link (POSIX open)."""


class Reader(Protocol):
    """A run of bytes, read from its beginning to its end."""

    def read(self, limit: int) -> bytes:
        """Give the next ``limit`` bytes, fewer only before the end, none at the end.

        Raises :class:`VolumeDamaged` if they are not there, :class:`OSError` if the disk fails.
        """

    def close(self) -> None:
        """Let go of every file; may be called again, but not while ``read`` runs."""


class TreeReader:
    """The pieces of a bundle, their files below ``root``.

    One file is open at a time, from its first byte to its last.  The last component of a path is
    never followed if it is a symbolic link.
    """

    def __init__(self, root: Path, segments: Iterator[Literal | Slice]) -> None:
        self._root = str(root)
        self._segments = segments
        self._literal = memoryview(b"")
        self._file = -1
        self._path = ""
        self._left = 0
        """How many bytes are still to come of the open file."""

    def read(self, limit: int) -> bytes:
        """Give the next ``limit`` bytes, put together of as many pieces as it takes."""
        if limit < 1:
            raise ValueError(f"cannot read {limit} bytes")
        parts: list[bytes | memoryview] = []
        wanted = limit
        while wanted and (part := self._part(wanted)):
            parts.append(part)
            wanted -= len(part)
        if len(parts) == 1 and isinstance(parts[0], bytes):
            return parts[0]  # from the middle of a file: never copied
        return b"".join(parts)

    def close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def _part(self, limit: int) -> bytes | memoryview:
        """Give up to ``limit`` bytes of one piece; none at the end."""
        while not self._literal and not self._left:
            piece = next(self._segments, None)
            if piece is None:
                return b""
            if isinstance(piece, Literal):
                self._literal = memoryview(piece.data)
            else:
                self._open(piece)
        if self._literal:
            part, self._literal = self._literal[:limit], self._literal[limit:]
            return part
        return self._read_file(min(limit, self._left))

    def _open(self, piece: Slice) -> None:
        try:
            self._file = os.open(f"{self._root}/{piece.path}", _FLAGS)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            raise VolumeDamaged(f"{piece.path} is missing on the volume") from error
        found = os.fstat(self._file)
        if not S_ISREG(found.st_mode):
            raise VolumeDamaged(f"{piece.path} is not a regular file on the volume")
        if found.st_size != piece.size:
            raise VolumeDamaged(
                f"{piece.path} has {found.st_size} bytes on the volume"
                f" where {piece.size} were recorded"
            )
        if piece.offset:
            os.lseek(self._file, piece.offset, os.SEEK_SET)
        self._path, self._left = piece.path, piece.length

    def _read_file(self, limit: int) -> bytes:
        data = os.read(self._file, limit)
        if not data:
            raise VolumeDamaged(f"{self._path} has become shorter while it was read")
        self._left -= len(data)
        if not self._left:
            self.close()
        return data


class TarReader(TreeReader):
    """The bytes from ``start`` up to ``stop`` of a tar of ``size`` bytes on the volume."""

    def __init__(self, path: Path, size: int, start: int, stop: int) -> None:
        wanted = Slice(path.name, size, start, stop - start)
        super().__init__(path.parent, iter([wanted] if stop > start else []))

"""The bytes of a bundle from the volume; blocking, for a thread.

Strategy: a tar is literals and slices of files, in their order.  :meth:`TreeReader.read` gives
them as bytes.  :meth:`TreeReader.send` gives them to a socket: what is small is gathered for few
system calls, while a long slice of a file goes from the system's cache to the socket without ever
coming here (sendfile), as with any good server of static files.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Final

from cartd.disk_errors import is_missing, raise_if_transient
from cartd.errors import FileUnreadable, VolumeDamaged
from cartd.sending.dir_fd_cache import DirFdCache
from cartd.sending.reader import CartLock
from cartd.tar.virtual_tar import Literal, Slice

SENDFILE_MIN: Final = 64 * 2**10
"""Bytes of a slice that are worth a system call of their own."""
COALESCE_SIZE: Final = 128 * 2**10
"""Bytes up to which shorter ones are put together."""
SENDFILE_STEP: Final = 256 * 2**10
"""Bytes of a long slice that are sent at once.  Of more, those sent first have left the processor's
cache before the client reads them, which costs a third more."""

_FILE_ERRNOS = frozenset(
    {errno.EIO, errno.EBADMSG, errno.ESTALE, getattr(errno, "EUCLEAN", errno.EIO)}
)
"""What is said of the file and not of the socket, where a call has both."""
_SENDFILE_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""A file system, or a socket, that does not take part in it."""
_NOT_READABLE_ERRNOS = frozenset({errno.EISDIR, errno.ESPIPE, errno.EINVAL, errno.ENXIO})
"""A directory, or a pipe and the like, which :func:`os.pread` does not read."""
_RWF_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
_MSG_MORE: Final[int] = getattr(socket, "MSG_MORE", 0)


class TreeReader:
    """The pieces of a bundle, their files below ``tree``, which is ``root`` or below that.

    One file is open at a time, from its first byte to its last.  No symbolic link below ``root`` is
    followed.  From the first byte on until it is closed, the reader has the cart ``lock`` on the
    volume.  It keeps directories open only while it works, not while it waits for the client.
    """

    def __init__(
        self,
        tree: Path,
        segments: Iterator[Literal | Slice],
        lock: CartLock | None = None,
        *,
        root: Path | None = None,
    ) -> None:
        self._directories = DirFdCache(root or tree)
        self._prefix = f"{tree.relative_to(root).as_posix()}/" if root else ""
        self._segments = segments
        self._lock = lock
        self._literal: bytes | memoryview = b""
        self._file = -1
        self._path = ""
        self._offset = 0
        self._left = 0
        """How many bytes are still to come of the open file, from ``_offset`` on."""
        self._coalesced = memoryview(b"")
        """What is to be sent before them."""
        self._has_sendfile = hasattr(os, "sendfile")
        self._by_sendfile = False
        """Whether the open file is sent by it."""
        self.at_end = False
        self.bytes_sent = 0

    def read(self, limit: int) -> bytes:
        """Give the next ``limit`` bytes, put together of as many pieces as it takes."""
        if limit < 1:
            raise ValueError(f"cannot read {limit} bytes")
        self._acquire_lock()
        parts: list[bytes | memoryview] = []
        wanted = limit
        with self._directories:
            while wanted and self._advance():
                part = self._part(wanted)
                parts.append(part)
                wanted -= len(part)
        if len(parts) == 1 and isinstance(parts[0], bytes):
            return parts[0]  # from the middle of a file: never copied
        return b"".join(parts)

    def prepare(self) -> None:
        with self._directories:
            self._prepare()

    def is_cached(self, limit: int) -> bool:
        """Only ever told of a long slice, from its first byte and its last."""
        if sys.platform == "win32" or not self._by_sendfile or _RWF_NOWAIT is None:
            return False
        last = self._offset + min(limit, self._left) - 1
        try:
            return all(
                os.preadv(self._file, [bytearray(1)], offset, _RWF_NOWAIT)
                for offset in (self._offset, last)
            )
        except OSError:
            return False  # it is on the disk alone, or this file system does not tell

    def send(self, out: socket.socket, limit: int) -> int:
        sent = 0
        with suppress(BlockingIOError), self._directories:
            while sent < limit:
                self._prepare()
                if self._coalesced:
                    part = self._send_coalesced(out)
                elif self._left:
                    part = self._send_file(out, limit - sent)
                else:
                    self.at_end = True
                    break
                sent += part
                self.bytes_sent += part
        return sent

    def close(self) -> None:
        self._close_file()
        if self._lock is not None:
            self._lock.release()

    def _close_file(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def _prepare(self) -> None:
        self._acquire_lock()
        if not self._coalesced:
            self._coalesce()

    def _acquire_lock(self) -> None:
        if self._lock is not None:
            self._lock.acquire()

    def _advance(self) -> bool:
        """Go on to the next piece if the last one has been given; False at the end."""
        while not self._literal and not self._left:
            piece = next(self._segments, None)
            if piece is None:
                return False
            if isinstance(piece, Literal):
                self._literal = piece.data
            else:
                self._open(piece)
        return True

    def _part(self, limit: int) -> bytes | memoryview:
        """Give some bytes of the piece that it is at."""
        literal = self._literal
        if len(literal) > limit:
            self._literal = memoryview(literal)[limit:]
            return literal[:limit]
        if literal:
            self._literal = b""
            return literal
        try:
            data = os.read(self._file, min(limit, self._left))
        except OSError as error:
            raise self._translate_error(error) from error
        self._consumed(len(data))
        return data

    def _coalesce(self) -> None:
        """Put together what comes before the next long slice."""
        parts: list[bytes | memoryview] = []
        space = COALESCE_SIZE
        while space and self._advance():
            if self._left >= SENDFILE_MIN:
                self._by_sendfile = self._has_sendfile
            if self._by_sendfile:
                break
            part = self._part(space)
            parts.append(part)
            space -= len(part)
        self._coalesced = memoryview(b"".join(parts))

    def _send_coalesced(self, out: socket.socket) -> int:
        sent = out.send(self._coalesced, _MSG_MORE if self._left else 0)
        self._coalesced = self._coalesced[sent:]
        return sent

    def _send_file(self, out: socket.socket, limit: int) -> int:
        if sys.platform == "win32":
            raise NotImplementedError
        try:
            count = min(limit, self._left, SENDFILE_STEP)
            sent = os.sendfile(out.fileno(), self._file, self._offset, count)
        except OSError as error:
            if error.errno in _FILE_ERRNOS:
                raise self._translate_error(error) from error
            if error.errno not in _SENDFILE_UNSUPPORTED:
                raise
            self._has_sendfile = self._by_sendfile = False
            os.lseek(self._file, self._offset, os.SEEK_SET)
            return 0
        self._consumed(sent)
        return sent

    def _open(self, piece: Slice) -> None:
        self._path = piece.path
        try:
            self._file = self._directories.open(self._prefix + piece.path)
        except OSError as error:
            raise self._translate_error(error) from error
        if piece.length == piece.size < SENDFILE_MIN and self._read_whole(piece.size):
            return
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
        self._offset, self._left = piece.offset, piece.length

    def _read_whole(self, size: int) -> bool:
        """Read the whole file, if it is one of that size: most are small, and need not be asked.

        That it has places to read at (pread) tells it from a pipe or a socket.
        """
        try:
            data = _read_at(self._file, size + 1, 0)
        except OSError as error:
            if error.errno in _NOT_READABLE_ERRNOS:
                return False
            raise self._translate_error(error) from error
        if len(data) != size:
            return False
        self._close_file()
        self._literal = data
        return True

    def _translate_error(self, error: OSError) -> Exception:
        """What the system says of the file that it is at, as what it means for the cart.

        Raises :class:`~cartd.errors.DiskUnavailable` for what it says of no file.
        """
        if is_missing(error):
            return VolumeDamaged(f"{self._path} is missing on the volume")
        raise_if_transient(error)
        return FileUnreadable(self._path, error.strerror or str(error))

    def _consumed(self, count: int) -> None:
        if not count:
            raise VolumeDamaged(f"{self._path} has become shorter while it was read")
        self._offset += count
        self._left -= count
        if not self._left:
            self._by_sendfile = False
            self._close_file()


def _read_at(file: int, count: int, offset: int) -> bytes:
    if sys.platform != "win32":
        return os.pread(file, count, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, count)


class TarReader(TreeReader):
    """The bytes from ``start`` up to ``stop`` of a tar of ``size`` bytes on the volume."""

    def __init__(
        self,
        path: Path,
        size: int,
        start: int,
        stop: int,
        lock: CartLock | None = None,
        *,
        root: Path | None = None,
    ) -> None:
        wanted = Slice(path.name, size, start, stop - start)
        super().__init__(path.parent, iter([wanted] if stop > start else []), lock, root=root)

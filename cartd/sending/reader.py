"""Readers of the bytes of a cart's tar from the volume; blocking, for a thread.

Strategy: a tar is a sequence of literals and slices of files.  :meth:`TreeReader.read` returns them
as bytes.  :meth:`TreeReader.send` sends them to a socket: small ones are coalesced into few system
calls, a long slice of a file goes from the page cache to the socket by sendfile(2).
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
from typing import Final, Protocol

from cartd.errors import FileUnreadable, VolumeDamaged, is_missing, raise_if_transient
from cartd.tar.virtual_tar import Literal, Slice
from cartd.volume.rooted_fs import (
    HAS_DIR_FD,
    MAX_OPEN,
    READ_FLAGS,
    check_name,
    open_directory,
    open_root,
)

SENDFILE_MIN: Final = 64 * 2**10
"""Bytes of a slice that are worth a system call of their own."""
COALESCE_SIZE: Final = 128 * 2**10
"""Bytes up to which shorter slices are coalesced."""
SENDFILE_STEP: Final = 256 * 2**10
"""Bytes of a long slice that are sent at once.  With more, the first have left the CPU cache before
the client reads them, which costs a third more."""

_FILE_ERRNOS = frozenset(
    {errno.EIO, errno.EBADMSG, errno.ESTALE, getattr(errno, "EUCLEAN", errno.EIO)}
)
"""Errors of the file, not of the socket, in a call that has both."""
_SENDFILE_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""The file system or the socket does not support sendfile."""
_NOT_READABLE_ERRNOS = frozenset({errno.EISDIR, errno.ESPIPE, errno.EINVAL, errno.ENXIO})
"""A directory or a pipe, which :func:`os.pread` cannot read."""
_RWF_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
_MSG_MORE: Final[int] = getattr(socket, "MSG_MORE", 0)


class Reader(Protocol):
    """A sequence of bytes, read from its beginning to its end."""

    def read(self, limit: int) -> bytes:
        """Return the next ``limit`` bytes, fewer only before the end, none at the end.

        Raises :class:`VolumeDamaged` if they are missing, :class:`OSError` if the disk fails.
        """

    def close(self) -> None:
        """Close every file; may be called repeatedly, but not while another method runs."""


class SendingReader(Reader, Protocol):
    """A reader that can also send its bytes to a socket."""

    at_end: bool
    """Whether ``send`` has sent the last byte and detected the end."""
    bytes_sent: int
    """How many bytes ``send`` has sent; grows while it runs."""

    def prepare(self) -> None:
        """Read the first bytes ahead; raises as ``read`` does."""

    def is_cached(self, limit: int) -> bool:
        """Whether the next ``limit`` bytes are known to be in the page cache; never waits."""

    def send(self, out: socket.socket, limit: int) -> int:
        """Send the next bytes to ``out``, a non-blocking socket; return how many.

        At least ``limit``; fewer at the end, or when the send buffer is full.
        Raises as ``read`` does, and :class:`OSError` for the socket.
        """


class CartLock(Protocol):
    """A lock that keeps a cart on the volume."""

    def acquire(self) -> None:
        """Acquire, unless held; raises :class:`VolumeDamaged` if the cart is being removed."""

    def release(self) -> None:
        """Release; idempotent."""


class DirFdCache:
    """Opens files below ``root`` for reading, one after the other; for one thread at a time.

    Strategy: most files are small, so each gets as few system calls as possible: the directory of
    the last file and those above it stay open until :meth:`close`, the last few if there are many.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = str(root / "_")[:-1]
        self._open: list[tuple[str, int]] = []
        """Path and descriptor of each directory on the way to the last file, the deepest last."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])

    def open(self, path: str) -> int:
        """Open ``path``, relative to ``root``, with ``/``; errors are those of RootedFS."""
        if not HAS_DIR_FD:
            return os.open(self._prefix + path, READ_FLAGS)
        parent, _, name = path.rpartition("/")
        if not self._open or self._open[-1][0] != parent:
            self._change_directory(parent)
        return os.open(check_name(name), READ_FLAGS, dir_fd=self._open[-1][1])

    def _change_directory(self, directory: str) -> None:
        """Open ``directory``, from the nearest one above it that is open."""
        while self._open:
            path, fd = self._open[-1]
            if not path or path == directory or directory.startswith(f"{path}/"):
                break
            self._open.pop()
            os.close(fd)
        else:
            path = ""
            self._open.append((path, open_root(self._root)))
        if path == directory:
            return
        for name in directory[len(path) + 1 if path else 0 :].split("/"):
            path = f"{path}/{name}" if path else name
            self._open.append((path, open_directory(self._open[-1][1], name, path)))
            if len(self._open) > MAX_OPEN:
                os.close(self._open.pop(0)[1])


class TreeReader:
    """Reads the segments of a tar; their files are below ``tree``, which is ``root`` or below it.

    One file is open at a time, from its first byte to its last.  No symbolic link below ``root`` is
    followed.  The reader holds ``lock`` from the first byte until it is closed.  Directories are
    open only while it works, not while it waits for the client.

    With ``keep_open``, a file stays open for the next slice of it: all are of one version of it.
    """

    def __init__(
        self,
        tree: Path,
        segments: Iterator[Literal | Slice],
        lock: CartLock | None = None,
        *,
        root: Path | None = None,
        keep_open: bool = False,
    ) -> None:
        self._directories = DirFdCache(root or tree)
        self._prefix = f"{tree.relative_to(root).as_posix()}/" if root else ""
        self._segments = segments
        self._lock = lock
        self._keep_open = keep_open
        self._literal: bytes | memoryview = b""
        self._file = -1
        self._path = ""
        self._offset = 0
        self._left = 0
        """How many bytes of the open file are left, from ``_offset`` on."""
        self._coalesced = memoryview(b"")
        """Bytes to be sent before those of the open file."""
        self._has_sendfile = hasattr(os, "sendfile")
        self._by_sendfile = False
        """Whether the open file is sent by sendfile."""
        self.at_end = False
        self.bytes_sent = 0

    def read(self, limit: int) -> bytes:
        """Return the next ``limit`` bytes, joined from as many segments as needed."""
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
            return parts[0]  # from the middle of a file: not copied
        return b"".join(parts)

    def prepare(self) -> None:
        with self._directories:
            self._prepare()

    def is_cached(self, limit: int) -> bool:
        """Only for a long slice, by a test of its first and last byte."""
        if sys.platform == "win32" or not self._by_sendfile or _RWF_NOWAIT is None:
            return False
        last = self._offset + min(limit, self._left) - 1
        try:
            return all(
                os.preadv(self._file, [bytearray(1)], offset, _RWF_NOWAIT)
                for offset in (self._offset, last)
            )
        except OSError:
            return False  # not cached, or not supported by the file system

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
        """Go on to the next segment when the last one is finished; False at the end."""
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
        """Return bytes of the current segment."""
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
        """Join the bytes before the next long slice."""
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
        if self._file >= 0 and self._path == piece.path:
            self._seek(piece)
            return
        self._close_file()
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
            self._seek(piece)
        self._offset, self._left = piece.offset, piece.length

    def _seek(self, piece: Slice) -> None:
        os.lseek(self._file, piece.offset, os.SEEK_SET)
        self._offset, self._left = piece.offset, piece.length

    def _read_whole(self, size: int) -> bool:
        """Read the whole file if it has that size; so most files, being small, need no fstat.

        pread(2) fails for pipes and sockets.
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
        """Return the error of the cart for an error of the current file.

        Raises :class:`~cartd.errors.DiskUnavailable` for a transient error.
        """
        if is_missing(error):
            return VolumeDamaged(f"{self._path} is missing on the volume")
        raise_if_transient(error)
        return FileUnreadable(self._path, error.strerror or str(error))

    def _consumed(self, count: int) -> None:
        if not count:
            raise VolumeDamaged(f"{self._path} was truncated while it was read")
        self._offset += count
        self._left -= count
        if not self._left:
            self._by_sendfile = False
            if not self._keep_open:
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

"""Files that are written under a temporary name and renamed when they are complete.

Everything here blocks and belongs in a thread; for one :class:`PartialFile`, in one at a time.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.errors import NoSpace, raise_if_transient
from cartd.volume.mkdir_fs import MkdirFS
from cartd.volume.rooted_fs import CREATE_FLAGS, HAS_DIR_FD, RootedFS

DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
FILE_MODE = 0o644  # less the umask; until the rename, the mode of incoming/ denies others access


@contextmanager
def translate_disk_errors(path: Path, root: Path) -> Iterator[None]:
    """Translate errors of the system for ``path``, below ``root``, into errors for users.

    A full disk or disk quota becomes :class:`NoSpace`, and a transient error
    :class:`~cartd.errors.DiskUnavailable`; any other ``OSError`` keeps its errno and names the path
    relative to ``root``, or the path that obstructs it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise NoSpace from error
        raise_if_transient(error)
        if isinstance(error, NotADirectoryError) and root in Path(error.filename or "").parents:
            path = Path(error.filename)
        shown = str(path.relative_to(root))
        raise OSError(error.errno, error.strerror or str(error), shown) from error


class PartialFile:
    """New bytes for ``final``, written to ``temporary`` until :meth:`commit`.

    Both are below the root of ``fs``, which is retained until the file is committed or discarded,
    and on one file system.  Errors are those of :func:`translate_disk_errors`.
    """

    def __init__(self, temporary: Path, final: Path, fs: MkdirFS) -> None:
        self._temporary = temporary
        self._final = final
        self._fs = fs
        self._fd: int | None = None
        self._created = False
        self._retained = True
        fs.retain()

    @property
    def started(self) -> bool:
        """Whether the temporary file has been opened."""
        return self._fd is not None

    def append(self, data: bytes) -> None:
        with translate_disk_errors(self._final, self._fs.root):
            fd = self._open_fd()
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]

    def chown_to_owner_of(self, directory: Path) -> None:
        """Change the owner to that of ``directory``, the service's account, if this is root."""
        if sys.platform != "win32" and os.geteuid() == 0:
            owner = directory.stat()
            os.fchown(self._open_fd(), owner.st_uid, owner.st_gid)

    def sync(self) -> None:
        """Sync the appended bytes to the disk."""
        with translate_disk_errors(self._final, self._fs.root):
            os.fsync(self._open_fd())

    def commit(self, *, mtime: int | None = None, durable: bool = False) -> None:
        """Set the modification time (Unix seconds) and rename the file to its final name.

        A symbolic link at the final name is replaced, not followed.
        """
        with translate_disk_errors(self._final, self._fs.root):
            fd = self._open_fd()
            if mtime is not None:
                self._set_mtime(fd, mtime)
            if durable:
                os.fsync(fd)
            self._close()
            replace(self._temporary, self._final, self._fs)
            if durable:
                sync_directories(self._final.parent, self._fs)
        self._release_fs()

    def discard(self) -> None:
        """Close and remove the temporary file; may be called at any time, and repeatedly.

        A file that cannot be removed now is removed when the cart is restaged or deleted.
        """
        if self._fd is not None:
            with suppress(OSError):
                self._close()
        if self._created:
            # Not by MkdirFS: directories that have been removed must not be created again.
            with suppress(OSError), RootedFS(self._fs.root) as fs:
                fs.unlink(self._temporary)
        self._release_fs()

    def _open_fd(self) -> int:
        if self._fd is None:
            try:
                self._fd = self._fs.open(self._temporary, CREATE_FLAGS, FILE_MODE)
            except FileNotFoundError:
                self._fs.close()
                self._fd = self._fs.open(self._temporary, CREATE_FLAGS, FILE_MODE)
            self._created = True
        return self._fd

    def _set_mtime(self, fd: int, mtime: int) -> None:
        try:
            os.utime(fd if os.utime in os.supports_fd else self._temporary, (mtime, mtime))
        except (OverflowError, OSError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            raise OSError(number, f"its modification time {mtime} cannot be set") from error

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _release_fs(self) -> None:
        if self._retained:
            self._retained = False
            self._fs.release()


def replace(temporary: Path, final: Path, fs: MkdirFS) -> None:
    """Rename ``temporary`` to ``final``, and replace what is there."""
    try:
        try:
            fs.rename_into_place(temporary, final)
        except (IsADirectoryError, PermissionError):  # PermissionError on Windows
            if not fs.is_directory(final):
                raise
            fs.evict_directory(final)
            fs.rename_into_place(temporary, final)
    except FileNotFoundError:
        fs.close()  # an open directory has been removed
        raise


def sync_directories(directory: Path, fs: RootedFS) -> None:
    """Sync ``directory`` and its parents up to the root, so that names survive a power failure.

    A no-op where directories cannot be opened.
    """
    if not HAS_DIR_FD:
        return
    for level in (directory, *directory.parents):
        with fs.directory(level) as opened:
            os.fsync(opened)
        if level == fs.root:
            return

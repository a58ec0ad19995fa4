"""A file that is written beside its place and takes it when it is whole.

Everything here blocks and belongs in a thread; of one :class:`PartialFile`, in one at a time.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.disk_errors import raise_if_passing
from cartd.errors import NoSpace
from cartd.rooted_fs import AT, NEW, Beneath
from cartd.volume.mkdir_fs import Directories

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
FILE_MODE = 0o644  # less the umask; until it is whole, the directory above keeps others out


@contextmanager
def told_of(path: Path, root: Path) -> Iterator[None]:
    """Turn what the system says into what a user may read about ``path``, below ``root``.

    A full disk, or a full quota of the disk, becomes :class:`NoSpace`, and what says nothing of
    the path :class:`~cartd.errors.DiskUnavailable`; any other ``OSError`` keeps its number and
    names the path as it is below the volume, or what is in its way.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace from error
        raise_if_passing(error)
        if isinstance(error, NotADirectoryError) and root in Path(error.filename or "").parents:
            path = Path(error.filename)
        shown = str(path.relative_to(root))
        raise OSError(error.errno, error.strerror or str(error), shown) from error


class PartialFile:
    """New bytes for ``final``, kept in ``temporary`` until :meth:`place`.

    Both are below the root of ``directories``, which are needed until it is placed or discarded,
    and on one file system.  Errors are those of :func:`told_of`.
    """

    def __init__(self, temporary: Path, final: Path, directories: Directories) -> None:
        self._temporary = temporary
        self._final = final
        self._directories = directories
        self._fd: int | None = None
        self._made = False
        self._needs = True
        directories.need()

    @property
    def begun(self) -> bool:
        """Whether there is something to discard."""
        return self._fd is not None

    def append(self, data: bytes) -> None:
        with told_of(self._final, self._directories.root):
            fd = self._opened()
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]

    def give_to_owner_of(self, directory: Path) -> None:
        """What root writes is to be the service's, to which the directory belongs."""
        if sys.platform != "win32" and os.geteuid() == 0:
            owner = directory.stat()
            os.fchown(self._opened(), owner.st_uid, owner.st_gid)

    def sync(self) -> None:
        """Have the disk take what was appended."""
        with told_of(self._final, self._directories.root):
            os.fsync(self._opened())

    def place(self, *, mtime: int | None = None, durable: bool = False) -> None:
        """Give the file its modification time (Unix seconds) and its name.

        A final name that is a symbolic link is replaced, not followed.
        """
        with told_of(self._final, self._directories.root):
            fd = self._opened()
            if mtime is not None:
                self._set_mtime(fd, mtime)
            if durable:
                os.fsync(fd)
            self._close()
            replace(self._temporary, self._final, self._directories)
            if durable:
                sync_directories(self._final.parent, self._directories)
        self._needs_no_more()

    def discard(self) -> None:
        """Close and remove what there is; may be called at any time, and again.

        What cannot be removed now goes when the cart is staged again or deleted.
        """
        if self._fd is not None:
            with suppress(OSError):
                self._close()
        if self._made:
            # Without making what has gone meanwhile.
            with suppress(OSError), Beneath(self._directories.root) as below:
                below.unlink(self._temporary)
        self._needs_no_more()

    def _opened(self) -> int:
        if self._fd is None:
            try:
                self._fd = self._directories.open(self._temporary, NEW, FILE_MODE)
            except FileNotFoundError:
                self._directories.close()
                self._fd = self._directories.open(self._temporary, NEW, FILE_MODE)
            self._made = True
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

    def _needs_no_more(self) -> None:
        if self._needs:
            self._needs = False
            self._directories.need_no_more()


def replace(temporary: Path, final: Path, directories: Directories) -> None:
    """Rename ``temporary`` to ``final``, whatever is there."""
    try:
        try:
            directories.put(temporary, final)
        except (IsADirectoryError, PermissionError):  # the other one on Windows
            if not directories.is_directory(final):
                raise
            directories.clear(final)
            directories.put(temporary, final)
    except FileNotFoundError:
        directories.close()  # somebody has removed one that was open
        raise


def sync_directories(directory: Path, below: Beneath) -> None:
    """Make the names in ``directory`` and those above it, up to the root, outlast a power failure.

    Where a system lets one ask.
    """
    if not AT:
        return
    for one in (directory, *directory.parents):
        with below.directory(one) as opened:
            os.fsync(opened)
        if one == below.root:
            return

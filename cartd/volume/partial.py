"""A file that is written beside its place and takes it when it is whole.

Everything here blocks and belongs in a thread; of one :class:`PartialFile`, in one at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.errors import NoSpace

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
FILE_MODE = 0o644  # less the umask; until it is whole, the directory above keeps others out
NEW_FILE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL  # also refuses to follow a symbolic link (POSIX, open)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


@contextmanager
def told_of(path: Path, root: Path) -> Iterator[None]:
    """Turn what the system says into what a user may read about ``path``, below ``root``.

    A full disk, or a full quota of the disk, becomes :class:`NoSpace`; any other ``OSError``
    keeps its number and names the path as it is below the volume.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace from error
        shown = str(path.relative_to(root))
        raise OSError(error.errno, error.strerror or str(error), shown) from error


class Directories:
    """Makes directories below ``root`` and remembers which of them exist."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: set[Path] = set()

    def make(self, directory: Path) -> None:
        """Make ``directory`` and those above it; what is there already must be no link.

        Threads may meet here: each step can be done twice.
        """
        missing: list[Path] = []
        while directory not in self._known and directory != self._root:
            missing.append(directory)
            directory = directory.parent
        for one in reversed(missing):
            try:
                one.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(one.lstat().st_mode):
                    raise NotADirectoryError(
                        errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(one)
                    ) from None
            self._known.add(one)

    def forget(self) -> None:
        """Somebody has removed directories: look again."""
        self._known.clear()


class PartialFile:
    """New bytes for ``final``, kept in ``temporary`` until :meth:`place`.

    Both are below ``root`` and on one file system.  Errors are those of :func:`told_of`.
    ``write`` is there to be replaced by a disk that fails.
    """

    def __init__(
        self,
        temporary: Path,
        final: Path,
        root: Path,
        directories: Directories,
        *,
        write: Callable[[int, memoryview], int] = os.write,
    ) -> None:
        self._temporary = temporary
        self._final = final
        self._root = root
        self._directories = directories
        self._write = write
        self._fd: int | None = None
        self._made = False

    @property
    def begun(self) -> bool:
        """Whether there is something to discard."""
        return self._fd is not None

    def append(self, data: bytes) -> None:
        with told_of(self._final, self._root):
            fd = self._opened()
            left = memoryview(data)
            while left:
                left = left[self._write(fd, left) :]

    def place(self, *, mtime: int | None = None, durable: bool = False) -> None:
        """Give the file its modification time (Unix seconds) and its name.

        A final name that is a symbolic link is replaced, not followed.
        """
        with told_of(self._final, self._root):
            fd = self._opened()
            if mtime is not None:
                self._set_mtime(fd, mtime)
            if durable:
                os.fsync(fd)
            self._close()
            self._rename()
            if durable:
                sync_directories(self._final.parent, self._root)

    def discard(self) -> None:
        """Close and remove what there is; may be called at any time, and again.

        What cannot be removed now is left to the sweep at the next start.
        """
        if self._fd is not None:
            with suppress(OSError):
                self._close()
        if self._made:
            with suppress(OSError):
                self._temporary.unlink()

    def _opened(self) -> int:
        if self._fd is None:
            self._directories.make(self._temporary.parent)
            try:
                self._fd = os.open(self._temporary, NEW_FILE, FILE_MODE)
            except FileNotFoundError:
                self._directories.forget()
                self._directories.make(self._temporary.parent)
                self._fd = os.open(self._temporary, NEW_FILE, FILE_MODE)
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

    def _rename(self) -> None:
        self._directories.make(self._final.parent)
        try:
            self._temporary.replace(self._final)
        except FileNotFoundError:
            self._directories.forget()
            raise


def sync_directories(directory: Path, root: Path) -> None:
    """Make the names in ``directory`` and those above it, up to ``root``, outlast a power failure.

    Where a system lets one ask.
    """
    if os.name == "nt":
        return
    for one in (directory, *directory.parents):
        fd = os.open(one, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if one == root:
            return

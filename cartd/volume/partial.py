"""A file that is written beside its place and takes it when it is whole.

Everything here blocks and belongs in a thread; of one :class:`PartialFile`, in one at a time.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
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


def refuse(occupied: Path) -> None:
    """What is at ``occupied`` stays there, and no directory can be made."""
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(occupied))


def _believe() -> None:
    pass


class Directories:
    """Makes directories below ``root`` and remembers which of them exist.

    ``check`` is called before the upper ones are made: it raises if this is not the volume.
    ``clear`` takes away what must not be at a path, or raises.
    """

    def __init__(
        self,
        root: Path,
        *,
        check: Callable[[], None] = _believe,
        clear: Callable[[Path], None] = refuse,
    ) -> None:
        self._root = root
        self._known: set[Path] = set()
        self._check = check
        self._clear = clear
        self._clearing = threading.Lock()

    def make(self, directory: Path) -> None:
        """Make ``directory`` and those above it; what is there already must be no link.

        Threads may meet here: each step can be done twice.  Those further down need no check: they
        cannot be made where those above them are not.
        """
        missing: list[Path] = []
        while directory not in self._known and directory != self._root:
            missing.append(directory)
            directory = directory.parent
        for one in reversed(missing):
            if self._root in (one.parent, one.parent.parent):
                self._check()
            try:
                one.mkdir()
            except FileExistsError:
                self._make_in_place(one)
            self._known.add(one)

    def clear(self, occupied: Path) -> None:
        """Take away a directory that is where a file belongs."""
        with self._clearing:
            if stat.S_ISDIR(occupied.lstat().st_mode):
                self._clear(occupied)
                self._known.clear()

    def _make_in_place(self, directory: Path) -> None:
        # One at a time: what another thread has made meanwhile must stay.
        with self._clearing:
            if not stat.S_ISDIR(directory.lstat().st_mode):
                self._clear(directory)
                directory.mkdir()

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

        What cannot be removed now goes when the cart is staged again or deleted.
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
        replace(self._temporary, self._final, self._directories)


def replace(temporary: Path, final: Path, directories: Directories) -> None:
    """Rename ``temporary`` to ``final``, whatever is there; its directory should be there too."""
    try:
        try:
            temporary.replace(final)
        except (IsADirectoryError, PermissionError):  # the other one on Windows
            if not final.is_dir() or final.is_symlink():
                raise
            directories.clear(final)
            temporary.replace(final)
    except FileNotFoundError:
        directories.forget()
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

"""Files below a directory in which others may write, reached without ever leaving it.

Strategy: in a path, the system follows a symbolic link wherever it finds one, and whoever swaps a
directory for a link just then leads it elsewhere.  So it is never given a path: directories are
opened one below the other, no link followed, and what is done is done to a name in the last one
(openat(2) and its like, O_NOFOLLOW).  The last few stay open, as files come one directory after the
other.  Everything here blocks: for threads.

Windows has no such calls: there, paths are used as they are.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final

KEPT: Final = 6
"""Directories that stay open.  Few: a process may have 1,024 descriptors, and there may be as many
of these objects as there are downloads and connections to the archive."""
AT: Final = os.stat in os.supports_dir_fd
"""Whether the system has calls that take a directory's descriptor."""
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_SAFE: Final = (
    _NO_LINK
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO that somebody left there must not hold the thread
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
READ: Final = os.O_RDONLY | _SAFE
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
LOCK: Final = os.O_RDWR | _SAFE
DIRECTORY: Final = READ | getattr(os, "O_DIRECTORY", 0)
_LINK: Final = frozenset({errno.ENOTDIR, errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP)})
"""What systems say of a link that they were told not to follow."""
_NO_NAMES: Final = frozenset({"", ".", ".."})

Name = tuple[str, int | None]
"""A name, and the descriptor of the directory that it is in: ``dir_fd`` of the calls of ``os``.
Where there are no such calls it is the whole path, and none."""


class _Opened:
    """A directory that is open for as long as it is kept, or somebody uses it."""

    __slots__ = ("fd", "kept", "path", "users")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.users = 1
        self.kept = False


class Beneath:
    """What is below ``root``, for several threads; the path of ``root`` itself may hold links.

    Paths are given as ``root / ...``.  Errors are ``OSError`` as of the call with the whole path,
    and ``NotADirectoryError`` for a link on the way.  It holds no descriptor before its first use,
    and none after :meth:`close`, which may come again and again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._before = str(root / "_")[:-1]
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Beneath:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what nobody uses; the rest is let go of when it is used no more."""
        with self._lock:
            for one in self._opened.values():
                self._drop(one)
            self._opened.clear()

    @contextmanager
    def entry(self, path: Path) -> Iterator[Name]:
        """The name of ``path`` in its directory, for as long as the block runs."""
        if not AT:
            self._ready(path.parent)
            yield str(path), None
            return
        above, _, name = self.below(path).rpartition("/")
        check_name(name)
        directory = self._take(above)
        try:
            yield name, directory.fd
        finally:
            self._give(directory)

    @contextmanager
    def directory(self, path: Path) -> Iterator[Any]:
        """A directory that is there, as ``os.scandir`` takes it."""
        if not AT:
            self._ready(path)
            yield str(path)
            return
        directory = self._take("" if path == self.root else self.below(path))
        try:
            yield directory.fd
        finally:
            self._give(directory)

    def lstat(self, path: Path) -> os.stat_result:
        with self.entry(path) as (name, at):
            return os.stat(name, dir_fd=at, follow_symlinks=False)

    def exists(self, path: Path) -> bool:
        """Whether something is there, a link among them; not behind one."""
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_directory(self, path: Path) -> bool:
        """Whether it is one itself, and no link to one."""
        try:
            return S_ISDIR(self.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def open(self, path: Path, flags: int = READ, mode: int = 0o600) -> int:
        """``flags`` are :data:`READ`, :data:`NEW`, :data:`LOCK`, or more than these."""
        return self.open_below(self.below(path), flags, mode)

    def open_below(self, path: str, flags: int = READ, mode: int = 0o600) -> int:
        """As :meth:`open`, for a path from ``root`` on, with ``/``."""
        if not AT:
            self._ready((self.root / path).parent)
            return os.open(self._before + path, flags, mode)
        above, _, name = path.rpartition("/")
        directory = self._take(above)
        try:
            return os.open(check_name(name), flags, mode, dir_fd=directory.fd)
        finally:
            self._give(directory)

    def open_file(self, path: Path) -> int:
        """Open a regular file to be read; ``OSError`` with ``ENOTSUP`` for what is none."""
        return regular(self.open(path))

    def mkdir(self, path: Path) -> None:
        with self.entry(path) as (name, at):
            os.mkdir(name, dir_fd=at)

    def make(self, path: Path) -> None:
        """Make the directory, unless it is there."""
        with suppress(FileExistsError):
            self.mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        with self.entry(old) as (name, at), self.entry(new) as (new_name, new_at):
            os.rename(name, new_name, src_dir_fd=at, dst_dir_fd=new_at)

    def replace(self, old: Path, new: Path) -> None:
        """As :meth:`rename`, whatever file or link is called ``new``."""
        with self.entry(old) as (name, at), self.entry(new) as (new_name, new_at):
            os.replace(name, new_name, src_dir_fd=at, dst_dir_fd=new_at)

    def unlink(self, path: Path) -> None:
        """Remove a file or a link; nothing to do if it is not there."""
        with suppress(FileNotFoundError), self.entry(path) as (name, at):
            os.unlink(name, dir_fd=at)

    def rmdir(self, path: Path) -> None:
        with self.entry(path) as (name, at):
            os.rmdir(name, dir_fd=at)

    def below(self, path: Path) -> str:
        """``path`` from ``root`` on."""
        text = str(path)
        if not text.startswith(self._before):
            raise _leads_out(text)
        return text[len(self._before) :].replace(os.sep, "/")

    def _ready(self, directory: Path) -> None:
        """A path in ``directory`` is about to be used as it is."""

    # What follows is not for Windows.

    def _take(self, directory: str) -> _Opened:
        """A directory by its path below ``root``, '' for that; to be given back."""
        with self._lock:
            found = self._opened.get(directory)
            if found is not None:
                found.users += 1
                self._opened.move_to_end(directory)
                return found
        return self._walk(directory)

    def _walk(self, directory: str) -> _Opened:
        held: _Opened | None = None
        names: list[str] = []
        above = directory
        while held is None:
            if not above:
                held = self._keep("", self._open_root())
                break
            above, _, name = above.rpartition("/")
            names.append(name)
            held = self._kept(above)
        for name in reversed(names):
            path = f"{held.path}/{name}" if held.path else name
            try:
                fd = self._step(held.fd, name, path)
            finally:
                self._give(held)
            held = self._keep(path, fd)
        return held

    def _give(self, directory: _Opened) -> None:
        with self._lock:
            directory.users -= 1
            if not directory.users and not directory.kept:
                os.close(directory.fd)

    def _open_root(self) -> int:
        return open_root(self.root)

    def _step(self, at: int, name: str, path: str) -> int:
        """Open ``name``, which ``path`` from ``root`` on leads to, in the directory ``at``."""
        return open_directory(at, name, path)

    def _kept(self, path: str) -> _Opened | None:
        with self._lock:
            found = self._opened.get(path)
            if found is not None:
                found.users += 1
                self._opened.move_to_end(path)
            return found

    def _keep(self, path: str, fd: int) -> _Opened:
        new = _Opened(path, fd)
        new.kept = True
        with self._lock:
            old = self._opened.pop(path, None)
            if old is not None:  # another thread has opened it meanwhile
                self._drop(old)
            self._opened[path] = new
            if len(self._opened) > KEPT:
                self._drop(self._opened.popitem(last=False)[1])
        return new

    def _drop(self, one: _Opened) -> None:
        one.kept = False
        if not one.users:
            os.close(one.fd)


def open_root(root: Path) -> int:
    """Open the directory that all is below."""
    # The administrator's path: it may lead through links.
    return os.open(root, DIRECTORY & ~_NO_LINK)


def open_directory(at: int, name: str, path: str) -> int:
    """Open ``name`` in the directory ``at``; errors name ``path``, and a link is one."""
    try:
        return os.open(check_name(name), DIRECTORY, dir_fd=at)
    except OSError as error:
        if error.errno in _LINK:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
        raise


def regular(fd: int) -> int:
    """``fd`` itself if it is a regular file; else it is closed, and ``OSError`` raised."""
    try:
        if S_ISREG(os.fstat(fd).st_mode):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise OSError(errno.ENOTSUP, "it is not a regular file")


def check_name(name: str) -> str:
    """The name itself; ``OSError`` if it leads elsewhere, as ``..`` does."""
    if name in _NO_NAMES:
        raise _leads_out(name)
    return name


def _leads_out(path: str) -> OSError:
    """As openat2(2) says it."""
    return OSError(errno.EXDEV, "it leads out of its directory", path)

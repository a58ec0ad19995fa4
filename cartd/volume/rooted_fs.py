"""Access to files below a root directory that follows no symbolic link out of it.

Strategy: given a path, the kernel follows every symbolic link in it, so a process that swaps a
directory for a link at the right moment redirects the call.  Hence the kernel never gets a path:
each directory is opened relative to its parent with O_NOFOLLOW (openat(2)), and the operation is
done on a name in the last one.  The last few directories stay open, because consecutive files are
mostly in the same one.  :class:`MkdirFS` also creates directories that are missing.  All of it
blocks and belongs in a thread.

Windows has no such calls: there, paths are used as they are.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final
from weakref import WeakValueDictionary

from cartd.errors import NoSpace, PathCollision, raise_if_transient, transient_raised

MAX_OPEN: Final = 6
"""Directories that stay open.  Few: a process may have 1,024 descriptors, and each download and
each connection to the archive may have an object of this class."""
HAS_DIR_FD: Final = os.stat in os.supports_dir_fd
"""Whether the system has calls that take the descriptor of a directory."""
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_SAFE_FLAGS: Final = (
    _NOFOLLOW
    | getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not block the thread
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
READ_FLAGS: Final = os.O_RDONLY | _SAFE_FLAGS
CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE_FLAGS
LOCK_FLAGS: Final = os.O_RDWR | _SAFE_FLAGS
DIRECTORY_FLAGS: Final = READ_FLAGS | getattr(os, "O_DIRECTORY", 0)
_LINK_ERRNOS: Final = frozenset({errno.ENOTDIR, errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP)})
"""Errors of systems for a symbolic link that must not be followed."""
_FORBIDDEN_NAMES: Final = frozenset({"", ".", ".."})
DISK_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})

NameAt = tuple[str, int | None]
"""A name and the descriptor of its directory (``dir_fd`` of the calls of ``os``); the whole path
and None where there are no such calls."""


class _OpenDirectory:
    """A directory that stays open while it is cached or in use."""

    __slots__ = ("cached", "fd", "path", "users")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.users = 1
        self.cached = False


class RootedFS:
    """The files below ``root``; thread-safe.  The path of ``root`` itself may contain links.

    Paths are given as ``root / ...``.  Errors are those of the call with the whole path;
    ``NotADirectoryError`` for a symbolic link on the way.  No descriptor is open before the first
    use and after :meth:`close`, which may be called repeatedly.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = str(root / "_")[:-1]
        self._open_directories: OrderedDict[str, _OpenDirectory] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> RootedFS:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directories that are not in use; the others close when their use ends."""
        with self._lock:
            for directory in self._open_directories.values():
                self._uncache(directory)
            self._open_directories.clear()

    @contextmanager
    def entry(self, path: Path) -> Iterator[NameAt]:
        """Yield the name of ``path`` and its open directory."""
        if not HAS_DIR_FD:
            self._prepare_path(path.parent)
            yield str(path), None
            return
        parent, _, name = self.relative(path).rpartition("/")
        check_name(name)
        directory = self._acquire(parent)
        try:
            yield name, directory.fd
        finally:
            self._release(directory)

    @contextmanager
    def directory(self, path: Path) -> Iterator[Any]:
        """Yield an existing directory in a form that ``os.scandir`` accepts."""
        if not HAS_DIR_FD:
            self._prepare_path(path)
            yield str(path)
            return
        directory = self._acquire("" if path == self.root else self.relative(path))
        try:
            yield directory.fd
        finally:
            self._release(directory)

    def lstat(self, path: Path) -> os.stat_result:
        with self.entry(path) as (name, dir_fd):
            return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    def exists(self, path: Path) -> bool:
        """Whether the name exists, as a symbolic link too; false behind a link."""
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_directory(self, path: Path) -> bool:
        """Whether the name is a directory, not a link to one."""
        try:
            return S_ISDIR(self.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def open(self, path: Path, flags: int = READ_FLAGS, mode: int = 0o600) -> int:
        """Open with :data:`READ_FLAGS`, :data:`CREATE_FLAGS` or :data:`LOCK_FLAGS`, or more."""
        return self.open_relative(self.relative(path), flags, mode)

    def open_relative(self, path: str, flags: int = READ_FLAGS, mode: int = 0o600) -> int:
        """As :meth:`open`, for a path relative to ``root``, with ``/``."""
        if not HAS_DIR_FD:
            self._prepare_path((self.root / path).parent)
            return os.open(self._prefix + path, flags, mode)
        parent, _, name = path.rpartition("/")
        directory = self._acquire(parent)
        try:
            return os.open(check_name(name), flags, mode, dir_fd=directory.fd)
        finally:
            self._release(directory)

    def open_file(self, path: Path) -> int:
        """Open a regular file for reading; ``OSError`` with ``ENOTSUP`` if it is not regular."""
        return require_regular(self.open(path))

    def mkdir(self, path: Path) -> None:
        with self.entry(path) as (name, dir_fd):
            os.mkdir(name, dir_fd=dir_fd)

    def ensure_directory(self, path: Path) -> None:
        """Create the directory unless it exists."""
        with suppress(FileExistsError):
            self.mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        with self.entry(old) as (name, dir_fd), self.entry(new) as (new_name, new_dir_fd):
            os.rename(name, new_name, src_dir_fd=dir_fd, dst_dir_fd=new_dir_fd)

    def replace(self, old: Path, new: Path) -> None:
        """As :meth:`rename`, and replace a file or link that is called ``new``."""
        with self.entry(old) as (name, dir_fd), self.entry(new) as (new_name, new_dir_fd):
            os.replace(name, new_name, src_dir_fd=dir_fd, dst_dir_fd=new_dir_fd)

    def unlink(self, path: Path) -> None:
        """Remove a file or a link, if it exists."""
        with suppress(FileNotFoundError), self.entry(path) as (name, dir_fd):
            os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, path: Path) -> None:
        with self.entry(path) as (name, dir_fd):
            os.rmdir(name, dir_fd=dir_fd)

    def relative(self, path: Path) -> str:
        """Return ``path`` relative to ``root``, with ``/``."""
        text = str(path)
        if not text.startswith(self._prefix):
            raise _escape_error(text)
        return text[len(self._prefix) :].replace(os.sep, "/")

    def _prepare_path(self, directory: Path) -> None:
        """Hook for subclasses: a path in ``directory`` is about to be used as it is."""

    # The methods below are not used on Windows.

    def _acquire(self, directory: str) -> _OpenDirectory:
        """Return an open directory by its path below ``root`` ('' for ``root``); release it."""
        with self._lock:
            found = self._open_directories.get(directory)
            if found is not None:
                found.users += 1
                self._open_directories.move_to_end(directory)
                return found
        return self._open_path(directory)

    def _open_path(self, directory: str) -> _OpenDirectory:
        held: _OpenDirectory | None = None
        names: list[str] = []
        parent = directory
        while held is None:
            if not parent:
                held = self._cache("", self._open_root())
                break
            parent, _, name = parent.rpartition("/")
            names.append(name)
            held = self._cached(parent)
        for name in reversed(names):
            path = f"{held.path}/{name}" if held.path else name
            try:
                fd = self._open_child(held.fd, name, path)
            finally:
                self._release(held)
            held = self._cache(path, fd)
        return held

    def _release(self, directory: _OpenDirectory) -> None:
        with self._lock:
            directory.users -= 1
            if not directory.users and not directory.cached:
                os.close(directory.fd)

    def _open_root(self) -> int:
        return open_root(self.root)

    def _open_child(self, dir_fd: int, name: str, path: str) -> int:
        """Open ``name`` in the directory ``dir_fd``; ``path`` is its path relative to ``root``."""
        return open_directory(dir_fd, name, path)

    def _cached(self, path: str) -> _OpenDirectory | None:
        with self._lock:
            found = self._open_directories.get(path)
            if found is not None:
                found.users += 1
                self._open_directories.move_to_end(path)
            return found

    def _cache(self, path: str, fd: int) -> _OpenDirectory:
        new = _OpenDirectory(path, fd)
        new.cached = True
        with self._lock:
            old = self._open_directories.pop(path, None)
            if old is not None:  # another thread has opened it meanwhile
                self._uncache(old)
            self._open_directories[path] = new
            if len(self._open_directories) > MAX_OPEN:
                self._uncache(self._open_directories.popitem(last=False)[1])
        return new

    def _uncache(self, directory: _OpenDirectory) -> None:
        directory.cached = False
        if not directory.users:
            os.close(directory.fd)


def open_root(root: Path) -> int:
    """Open the root directory."""
    # The administrator configured this path: it may contain symbolic links.
    return os.open(root, DIRECTORY_FLAGS & ~_NOFOLLOW)


def open_directory(dir_fd: int, name: str, path: str) -> int:
    """Open ``name`` in the directory ``dir_fd``; a link is an error, and errors name ``path``."""
    try:
        return os.open(check_name(name), DIRECTORY_FLAGS, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _LINK_ERRNOS:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
        raise


def require_regular(fd: int) -> int:
    """Return ``fd`` if it is a regular file; else close it and raise ``OSError``."""
    try:
        if S_ISREG(os.fstat(fd).st_mode):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise OSError(errno.ENOTSUP, "it is not a regular file")


def check_name(name: str) -> str:
    """Return the name; raise ``OSError`` if it refers to another directory, as ``..`` does."""
    if name in _FORBIDDEN_NAMES:
        raise _escape_error(name)
    return name


def _escape_error(path: str) -> OSError:
    """Return the error that openat2(2) raises."""
    return OSError(errno.EXDEV, "it leads out of its directory", path)


def raise_occupied(occupied: Path) -> None:
    """Raise ``NotADirectoryError``: ``occupied`` stays, and no directory can be created."""
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(occupied))


def _no_check(_root: int | None) -> None:
    pass


class MkdirFS(RootedFS):
    """As :class:`RootedFS`, but creates a directory that is missing, with its parents.

    ``check`` is called with a descriptor of the root (None on Windows) before anything is done in
    it, and raises if this is not the volume.  ``evict`` removes what occupies the path of a
    directory, or raises.  Directories stay open only between :meth:`retain` and :meth:`release`.
    """

    def __init__(
        self,
        root: Path,
        *,
        check: Callable[[int | None], None] = _no_check,
        evict: Callable[[Path], None] = raise_occupied,
        folds: bool = False,
    ) -> None:
        """``folds``: two names may be the same file (:mod:`cartd.volume.file_system`)."""
        super().__init__(root)
        self._check = check
        self._evict = evict
        self._mkdir_lock = threading.RLock()
        self._placed: dict[int, set[Path]] | None = {} if folds else None
        """The files that have been renamed into place, by inode number."""
        self._users_lock = threading.Lock()
        self._users = 0

    def retain(self) -> None:
        """Keep directories open until the matching :meth:`release`; calls are counted."""
        with self._users_lock:
            self._users += 1

    def release(self) -> None:
        with self._users_lock:
            self._users -= 1
            if not self._users:
                self.close()

    @contextmanager
    def retained(self) -> Iterator[None]:
        """Keep directories open while the block runs."""
        self.retain()
        try:
            yield
        finally:
            self.release()

    def rename_into_place(self, temporary: Path, final: Path) -> None:
        """Rename ``temporary`` to ``final``, as :meth:`replace`.

        :raises PathCollision: ``final`` is a file that was renamed into place under another name.
        """
        if self._placed is None:
            self.replace(temporary, final)
            return
        with self._mkdir_lock:
            self._check_collision(final)
            self.replace(temporary, final)
            self._placed.setdefault(self.lstat(final).st_ino, set()).add(final)

    def _check_collision(self, path: Path) -> None:
        try:
            number = self.lstat(path).st_ino
        except (FileNotFoundError, NotADirectoryError):
            return
        known = (self._placed or {}).get(number)
        if known and path not in known:
            raise PathCollision(self._path_in_cart(min(known)), self._path_in_cart(path))

    def _path_in_cart(self, path: Path) -> str:
        """Return the path below the directories of the cart and of its uid."""
        return self.relative(path).split("/", 2)[-1]

    def evict_directory(self, occupied: Path) -> None:
        """Remove a directory that occupies the path of a file."""
        with self._mkdir_lock:
            if self.is_directory(occupied):
                self._evict(occupied)
                self.close()

    def _open_root(self) -> int:
        try:
            root = super()._open_root()
        except OSError:
            self._check(None)
            raise
        try:
            self._check(root)
        except BaseException:
            os.close(root)
            raise
        return root

    def _open_child(self, dir_fd: int, name: str, path: str) -> int:
        try:
            return super()._open_child(dir_fd, name, path)
        except (FileNotFoundError, NotADirectoryError):
            self._make(dir_fd, name, self.root / path)
        return super()._open_child(dir_fd, name, path)

    def _prepare_path(self, directory: Path) -> None:
        for level in (*reversed(directory.parents), directory):
            if self.root in level.parents and not level.is_dir():
                self._check(None)
                self._make(None, str(level), level)

    def _make(self, dir_fd: int | None, name: str, directory: Path) -> None:
        # One thread at a time: a directory that another thread has just created must stay.
        with self._mkdir_lock:
            try:
                os.mkdir(name, dir_fd=dir_fd)
            except FileExistsError:
                if S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                    return
                if self._placed is not None:
                    self._check_collision(directory)
                self._evict(directory)
                os.mkdir(name, dir_fd=dir_fd)


class MkdirFSCache:
    """One :class:`MkdirFS` for each cart of which files are being written."""

    def __init__(
        self,
        root: Path,
        *,
        check: Callable[[int | None], None],
        evict: Callable[[int, Path], None],
        folds: Callable[[], bool],
    ) -> None:
        """As for :class:`MkdirFS`; ``evict`` also gets the id of the cart."""
        self._root = root
        self._check = check
        self._evict = evict
        self._folds = folds
        # An entry lives only while a file of the cart is being written.
        self._cached: WeakValueDictionary[int, MkdirFS] = WeakValueDictionary()

    def get(self, cart_id: int) -> MkdirFS:
        fs = self._cached.get(cart_id)
        if fs is None:
            fs = self._cached[cart_id] = MkdirFS(
                self._root,
                check=self._check,
                evict=lambda occupied: self._evict(cart_id, occupied),
                folds=self._folds(),
            )
        return fs

    def close(self, cart_id: int) -> None:
        """Close the directories of the cart that are not in use."""
        fs = self._cached.get(cart_id)
        if fs is not None:
            fs.close()


def list_entries(fs: RootedFS, directory: Path) -> list[tuple[str, os.stat_result]]:
    """Return the entries of a directory, links not followed; none if it is not a directory.

    Raises :class:`~cartd.errors.DiskUnavailable` if it cannot be read now.
    """
    found = []
    with (
        suppress(OSError),
        transient_raised(),
        fs.directory(directory) as opened,
        os.scandir(opened) as scanned,
    ):
        for entry in scanned:
            with suppress(FileNotFoundError):
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    return found


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

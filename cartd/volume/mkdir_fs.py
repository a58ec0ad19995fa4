"""A RootedFS that creates missing directories.  Blocks: for threads."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR

from cartd.errors import PathCollision
from cartd.volume.rooted_fs import RootedFS


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
        """``folds``: two names may be the same file (:mod:`cartd.volume.name_collisions`)."""
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

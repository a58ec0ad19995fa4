"""Directories below the volume's root, made where they are missing.  Blocks: for threads."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR

from cartd.errors import PathCollision
from cartd.rooted_fs import RootedFS


def raise_occupied(occupied: Path) -> None:
    """What is at ``occupied`` stays there, and no directory can be made."""
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(occupied))


def _no_check(_root: int | None) -> None:
    pass


class MkdirFS(RootedFS):
    """As :class:`RootedFS`, but a directory that is asked for is made, with those above it.

    ``check`` is called with a descriptor of the root (none on Windows) before anything is done in
    it: it raises if this is not the volume.  ``evict`` takes away what must not be at a path, or
    raises.  Directories stay open only while somebody says that more files come.
    """

    def __init__(
        self,
        root: Path,
        *,
        check: Callable[[int | None], None] = _no_check,
        evict: Callable[[Path], None] = raise_occupied,
        folds: bool = False,
    ) -> None:
        """``folds``: whether two names may be one here (:mod:`cartd.volume.name_collisions`)."""
        super().__init__(root)
        self._check = check
        self._evict = evict
        self._mkdir_lock = threading.RLock()
        self._placed: dict[int, set[Path]] | None = {} if folds else None
        """By their numbers (inodes), the files that have been put in place."""
        self._users_lock = threading.Lock()
        self._users = 0

    def retain(self) -> None:
        """More files come, until :meth:`release`; each may have said so."""
        with self._users_lock:
            self._users += 1

    def release(self) -> None:
        with self._users_lock:
            self._users -= 1
            if not self._users:
                self.close()

    @contextmanager
    def retained(self) -> Iterator[None]:
        """Files come while the block runs."""
        self.retain()
        try:
            yield
        finally:
            self.release()

    def rename_into_place(self, temporary: Path, final: Path) -> None:
        """Rename ``temporary`` to ``final``, as :meth:`replace`.

        :raises PathCollision: a file that has been put in place under another name is there.
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
        """Behind the directories of the cart and of its uid."""
        return self.relative(path).split("/", 2)[-1]

    def evict_directory(self, occupied: Path) -> None:
        """Take away a directory that is where a file belongs."""
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
        # Threads may meet here.  One at a time: what another one has made must stay.
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

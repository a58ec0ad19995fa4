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
from cartd.rooted_fs import Beneath


def refuse(occupied: Path) -> None:
    """What is at ``occupied`` stays there, and no directory can be made."""
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(occupied))


def _believe(_root: int | None) -> None:
    pass


class Directories(Beneath):
    """As :class:`Beneath`, but a directory that is asked for is made, with those above it.

    ``check`` is called with a descriptor of the root (none on Windows) before anything is done in
    it: it raises if this is not the volume.  ``clear`` takes away what must not be at a path, or
    raises.  Directories stay open only while somebody says that more files come.
    """

    def __init__(
        self,
        root: Path,
        *,
        check: Callable[[int | None], None] = _believe,
        clear: Callable[[Path], None] = refuse,
        folds: bool = False,
    ) -> None:
        """``folds``: whether two names may be one here (:mod:`cartd.volume.name_collisions`)."""
        super().__init__(root)
        self._check = check
        self._clear = clear
        self._clearing = threading.RLock()
        self._placed: dict[int, set[Path]] | None = {} if folds else None
        """By their numbers (inodes), the files that have been put in place."""
        self._counting = threading.Lock()
        self._needed = 0

    def need(self) -> None:
        """More files come, until :meth:`need_no_more`; each may have said so."""
        with self._counting:
            self._needed += 1

    def need_no_more(self) -> None:
        with self._counting:
            self._needed -= 1
            if not self._needed:
                self.close()

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Files come while the block runs."""
        self.need()
        try:
            yield
        finally:
            self.need_no_more()

    def put(self, temporary: Path, final: Path) -> None:
        """Rename ``temporary`` to ``final``, as :meth:`replace`.

        :raises PathCollision: a file that has been put in place under another name is there.
        """
        if self._placed is None:
            self.replace(temporary, final)
            return
        with self._clearing:
            self._check_name(final)
            self.replace(temporary, final)
            self._placed.setdefault(self.lstat(final).st_ino, set()).add(final)

    def _check_name(self, path: Path) -> None:
        try:
            number = self.lstat(path).st_ino
        except (FileNotFoundError, NotADirectoryError):
            return
        there = (self._placed or {}).get(number)
        if there and path not in there:
            raise PathCollision(self._in_cart(min(there)), self._in_cart(path))

    def _in_cart(self, path: Path) -> str:
        """Behind the directories of the cart and of its uid."""
        return self.below(path).split("/", 2)[-1]

    def clear(self, occupied: Path) -> None:
        """Take away a directory that is where a file belongs."""
        with self._clearing:
            if self.is_directory(occupied):
                self._clear(occupied)
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

    def _step(self, at: int, name: str, path: str) -> int:
        try:
            return super()._step(at, name, path)
        except (FileNotFoundError, NotADirectoryError):
            self._make(at, name, self.root / path)
        return super()._step(at, name, path)

    def _ready(self, directory: Path) -> None:
        for one in (*reversed(directory.parents), directory):
            if self.root in one.parents and not one.is_dir():
                self._check(None)
                self._make(None, str(one), one)

    def _make(self, at: int | None, name: str, directory: Path) -> None:
        # Threads may meet here.  One at a time: what another one has made must stay.
        with self._clearing:
            try:
                os.mkdir(name, dir_fd=at)
            except FileExistsError:
                if S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                    return
                if self._placed is not None:
                    self._check_name(directory)
                self._clear(directory)
                os.mkdir(name, dir_fd=at)

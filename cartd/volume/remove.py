"""Removal of trees, atomic for readers.  Everything here blocks: for threads.

Strategy: a tree is first renamed into its cart's directory in ``incoming/`` and removed there, so
no partial tree is ever visible under its name.  A crash in between leaves ``incoming/ID``, which
the next start finds and clears.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from stat import S_ISDIR
from typing import Final

from twisted.logger import Logger

from cartd.errors import Unavailable
from cartd.text import escape
from cartd.volume.paths import VolumePaths
from cartd.volume.rooted_fs import DIRECTORY_FLAGS, HAS_DIR_FD, RootedFS, raise_occupied

MAX_ATTEMPTS = 20
"""Attempts to remove a directory to which other processes still write."""
MAX_DEPTH_OPEN: Final = 25
"""Directories that are open at once, with two descriptors each; deeper ones are moved up."""
PAGE: Final = 1000
"""Entries of a directory that are in memory at once."""
TIME_SLICE: Final = 0.5
"""Seconds for which a thread removes the files of one tree at a time."""
_RACE_ERRNOS = frozenset(
    {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EMLINK}
)
"""Another process adds to a directory, or has replaced a directory by a file or the reverse."""

log = Logger()


class TimeSliceEnded(Exception):
    """The time slice of a removal is over; the rest of the tree still exists."""


class TimeSlice:
    """The time for which a thread removes files before it does other work.

    Call it before each file: it returns whether the service stops, and raises
    :class:`TimeSliceEnded` when the time is over.
    """

    def __init__(self, should_stop: Callable[[], bool], seconds: float = TIME_SLICE) -> None:
        self._should_stop = should_stop
        self._end = time.monotonic() + seconds

    def __call__(self) -> bool:
        if self._should_stop():
            return True
        if time.monotonic() > self._end:
            raise TimeSliceEnded
        return False


class RemovalStopped(Unavailable):
    """The service stops; the rest of the tree is removed later."""

    def __init__(self) -> None:
        super().__init__("The service is stopping")


def evict_foreign(paths: VolumePaths, cart_id: int, occupied: Path) -> None:
    """Remove a foreign file or directory in the tree of a cart that occupies a path of the cart.

    Raises ``NotADirectoryError`` if ``occupied`` is not in that tree.
    """
    own = paths.cart(cart_id)
    if occupied != own and own not in occupied.parents:
        raise_occupied(occupied)
    log.warn(
        "{path} occupies the path of a file of cart {id}; it is removed",
        path=escape(str(occupied)),
        id=cart_id,
    )
    with RootedFS(paths.root) as fs:
        rename_then_remove(fs, occupied, paths.temporary(cart_id, "in-the-way"))


def _never() -> bool:
    return False


def rename_then_remove(
    fs: RootedFS,
    tree: Path,
    aside: Path,
    should_stop: Callable[[], bool] = _never,
    *,
    make: Callable[[RootedFS, Path], None] = RootedFS.ensure_directory,
) -> None:
    """Rename ``tree`` to ``aside`` and remove it there, if it exists.

    If it cannot be renamed, as on a disk that is too full for another name, it is removed in place.
    ``make`` is a parameter for the tests of such a disk.
    """
    try:
        for _ in range(MAX_ATTEMPTS):
            if not fs.exists(tree):
                break
            make(fs, aside.parent)
            # Another process that removes the same cart may have removed either directory.
            with suppress(FileNotFoundError):
                fs.rename(tree, aside)
            fs.close()  # open directories may have been renamed or removed
    except OSError:
        remove_tree(fs, tree, should_stop)
    remove_tree(fs, aside, should_stop)


def remove_one_file(fs: RootedFS, tree: Path) -> None:
    """Remove one file of ``tree``, in place, or an empty directory; nothing if it does not exist.

    If this raises, the tree is unchanged.
    """
    if not fs.is_directory(tree):
        fs.unlink(tree)
        return
    directory = tree
    while (found := _any_entry(fs, directory)) is not None:
        name, is_directory = found
        if not is_directory:
            fs.unlink(directory / name)
            return
        directory = directory / name
    with suppress(FileNotFoundError):
        fs.rmdir(directory)


def _any_entry(fs: RootedFS, directory: Path) -> tuple[str, bool] | None:
    """Return a name in the directory and whether that is a directory; None if there is no name."""
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        fs.directory(directory) as opened,
        os.scandir(opened) as found,
    ):
        for entry in found:
            return entry.name, entry.is_dir(follow_symlinks=False)
    return None


def remove_tree(fs: RootedFS, tree: Path, should_stop: Callable[[], bool] = _never) -> None:
    """Remove ``tree``, a file or a directory, even if other processes add to it or remove from it.

    A symbolic link, ``tree`` itself or one inside it, is removed and never followed; if there is
    one on the way to ``tree``, nothing is removed.
    Raises :class:`RemovalStopped` as soon as ``should_stop()`` is true.
    """
    if not HAS_DIR_FD:
        _remove_by_path(tree)
        return
    try:
        with fs.entry(tree) as (name, dir_fd):
            _remove(name, dir_fd, should_stop)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        if fs.exists(tree):
            raise


def _remove_by_path(tree: Path) -> None:
    """On Windows, without interruption."""
    if tree.is_dir() and not tree.is_symlink():
        shutil.rmtree(tree)
    else:
        tree.unlink(missing_ok=True)


def _remove(name: str, dir_fd: int | None, should_stop: Callable[[], bool]) -> None:
    attempt = 1
    while True:
        try:
            if S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                _remove_directory(name, dir_fd, should_stop)
            else:
                os.unlink(name, dir_fd=dir_fd)
            return
        except OSError as error:
            if error.errno not in _RACE_ERRNOS or attempt == MAX_ATTEMPTS:
                raise
        attempt += 1


def _remove_directory(name: str, dir_fd: int | None, should_stop: Callable[[], bool]) -> None:
    top = os.open(name, DIRECTORY_FLAGS, dir_fd=dir_fd)
    try:
        while _remove_contents(top, top, 1, should_stop):
            pass
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _remove_contents(directory: int, top: int, depth: int, should_stop: Callable[[], bool]) -> bool:
    """Remove the contents; return whether a deep directory was moved up into ``top``."""
    moved_up = False
    with os.scandir(directory) as found:
        # Entries that were returned may be removed while the rest is read (POSIX, readdir).
        while page := list(islice(found, PAGE)):
            for entry in page:
                with suppress(FileNotFoundError):
                    moved_up |= _remove_entry(entry, directory, top, depth, should_stop)
    return moved_up


def _remove_entry(
    entry: os.DirEntry[str], directory: int, top: int, depth: int, should_stop: Callable[[], bool]
) -> bool:
    """As :func:`_remove_contents`, for one entry of ``directory``."""
    if not entry.is_dir(follow_symlinks=False):
        if should_stop():
            raise RemovalStopped
        os.unlink(entry.name, dir_fd=directory)
        return False
    if depth == MAX_DEPTH_OPEN:
        new = secrets.token_hex(16)
        os.rename(entry.name, new, src_dir_fd=directory, dst_dir_fd=top)
        return True
    inner = os.open(entry.name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        moved_up = _remove_contents(inner, top, depth + 1, should_stop)
    finally:
        os.close(inner)
    os.rmdir(entry.name, dir_fd=directory)
    return moved_up

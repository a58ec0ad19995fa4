"""Trees that go away, all at once for whoever looks.  Everything here blocks: for threads.

Strategy: a tree is first renamed into its cart's part of ``incoming/`` and only there taken
apart, so no half of it is ever seen under its name.  A crash in between leaves
``incoming/ID``, which the sweep at the next start finds and clears.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from cartd.errors import Unavailable
from cartd.volume.partial import FULL, refuse
from cartd.volume.paths import VolumePaths
from cartd.wording import shown

ATTEMPTS = 20
"""How often a directory into which others still write is tried."""

log = Logger()


class RemovalStopped(Unavailable):
    """The service stops, and what is left of the tree goes another time."""

    def __init__(self) -> None:
        super().__init__("The service is stopping")


def clear_the_way(paths: VolumePaths, cart_id: int, occupied: Path) -> None:
    """Take away what is in the tree of a cart where the cart's own belongs; nothing elsewhere.

    Raises ``NotADirectoryError`` for what is not in that tree.
    """
    own = paths.cart(cart_id)
    if occupied != own and own not in occupied.parents:
        refuse(occupied)
    log.warn(
        "{path} is in the way of a file of cart {id} and goes",
        path=shown(str(occupied)),
        id=cart_id,
    )
    take_away(occupied, paths.temporary(cart_id, "in-the-way"))


def _make(directory: Path) -> None:
    directory.mkdir(exist_ok=True)


def _never() -> bool:
    return False


def take_away(
    tree: Path,
    aside: Path,
    stopped: Callable[[], bool] = _never,
    *,
    make: Callable[[Path], None] = _make,
) -> None:
    """Rename ``tree`` to ``aside`` and remove it there; nothing to do if it is not there.

    ``make`` is there to be replaced by a disk that is full: then the tree is removed in its place.
    """
    try:
        for _ in range(ATTEMPTS):
            if not os.path.lexists(tree):
                break
            make(aside.parent)
            # Another process that clears the same cart may remove either directory meanwhile.
            with suppress(FileNotFoundError):
                tree.rename(aside)
    except OSError as error:
        if error.errno not in FULL:
            raise
        remove_tree(tree, stopped)
    remove_tree(aside, stopped)


def remove_tree(tree: Path, stopped: Callable[[], bool] = _never) -> None:
    """Remove ``tree``, whatever it is, and whoever else adds to it or removes from it meanwhile.

    A symbolic link, ``tree`` itself or one inside it, is removed and never followed.
    Raises :class:`RemovalStopped` as soon as ``stopped()`` says so.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if tree.is_symlink() or not tree.is_dir():
                tree.unlink(missing_ok=True)
            else:
                _remove_directory(tree, stopped)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == ATTEMPTS:
                raise


def _remove_directory(tree: Path, stopped: Callable[[], bool]) -> None:
    if not hasattr(os, "fwalk"):
        shutil.rmtree(tree)  # Windows: in one piece
        return
    for _, directories, files, at in os.fwalk(tree, topdown=False, onerror=_raise_unless_gone):
        for name in files:
            if stopped():
                raise RemovalStopped
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=at)
        for name in directories:
            with suppress(FileNotFoundError):
                _remove_entry(name, at)
    with suppress(FileNotFoundError):
        tree.rmdir()


def _remove_entry(name: str, at: int) -> None:
    """Remove an empty directory, or a symbolic link to one."""
    try:
        os.rmdir(name, dir_fd=at)
    except NotADirectoryError:
        os.unlink(name, dir_fd=at)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error

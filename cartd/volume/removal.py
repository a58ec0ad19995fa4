"""Trees that go away, all at once for whoever looks.  Everything here blocks: for threads.

Strategy: a tree is first renamed into its cart's part of ``incoming/`` and only there taken
apart, so no half of it is ever seen under its name.  A crash in between leaves
``incoming/ID``, which the sweep at the next start finds and clears.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from cartd.volume.partial import FULL, refuse
from cartd.volume.paths import VolumePaths

ATTEMPTS = 20
"""How often a directory into which others still write is tried."""


log = Logger()


def clear_the_way(paths: VolumePaths, cart_id: int, occupied: Path) -> None:
    """Take away what is in the tree of a cart where the cart's own belongs; nothing elsewhere.

    Raises ``NotADirectoryError`` for what is not in that tree.
    """
    own = paths.cart(cart_id)
    if occupied != own and own not in occupied.parents:
        refuse(occupied)
    log.warn("{path} is in the way of a file of cart {id} and goes", path=str(occupied), id=cart_id)
    take_away(occupied, paths.temporary(cart_id, "in-the-way"))


def _make(directory: Path) -> None:
    directory.mkdir(exist_ok=True)


def take_away(tree: Path, aside: Path, *, make: Callable[[Path], None] = _make) -> None:
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
        remove_tree(tree)
    remove_tree(aside)


def remove_tree(tree: Path) -> None:
    """Remove ``tree``, whatever it is, and whoever else adds to it or removes from it meanwhile.

    A symbolic link, ``tree`` itself or one inside it, is removed and never followed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if tree.is_symlink() or not tree.is_dir():
                tree.unlink(missing_ok=True)
            else:
                _rmtree(tree)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == ATTEMPTS:
                raise


def _rmtree(tree: Path) -> None:
    if sys.version_info >= (3, 12):
        shutil.rmtree(tree, onexc=_pass_over_what_is_gone)
    else:
        shutil.rmtree(tree, onerror=_pass_over_what_is_gone)


def _pass_over_what_is_gone(_function: Any, _path: str, info: Any) -> None:
    error = info[1] if isinstance(info, tuple) else info
    if not isinstance(error, FileNotFoundError):
        raise error

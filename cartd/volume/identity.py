"""Identity of the volume: detects that its disk is unmounted or replaced by another one.

A file in the volume's root holds a number, and the database holds the same one; it is written by
:func:`cartd.volume.file_system.write_volume_number`.  Everything here blocks: for the start, the
commands, and threads.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.logger import Logger

from cartd.errors import VolumeUnavailable, is_exhausted, raise_if_transient
from cartd.volume.paths import CART_ID, VolumePaths
from cartd.volume.rooted_fs import READ_FLAGS, require_regular

_NUMBER = re.compile(rb"[0-9]{1,10}\b")

log = Logger()
P = ParamSpec("P")
T = TypeVar("T")


def read_volume_number(root: Path, dir_fd: int | None = None) -> int | None:
    """Return the number of the volume at ``root``; None if there is no valid identity file.

    ``dir_fd`` is a descriptor of ``root``, if it is open.  Raises ``OSError`` if the file cannot
    be read.
    """
    path = VolumePaths(root).identity
    try:
        opened = require_regular(
            os.open(path if dir_fd is None else path.name, READ_FLAGS, dir_fd=dir_fd)
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = _NUMBER.match(os.read(opened, 100))
    finally:
        os.close(opened)
    return None if found is None else int(found[0])


def holds_carts(root: Path) -> bool:
    """Whether ``root`` contains what looks like the directory of a cart."""
    try:
        with os.scandir(root) as entries:
            return any(
                CART_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                for entry in entries
            )
    except (FileNotFoundError, NotADirectoryError):
        return False


class VolumeIdentity:
    """Checks that the volume is available; without a ``number`` nothing is checked.

    Logs once that it has become unavailable, and once that it is available again.
    """

    def __init__(self, root: Path, number: int | None) -> None:
        self._root = root
        self._number = number
        self._unavailable = False
        self._lock = threading.Lock()

    def check(self, dir_fd: int | None = None) -> None:
        """Raises :class:`~cartd.errors.VolumeUnavailable` if the directory is not the volume now.

        :class:`~cartd.errors.DiskUnavailable` if this process cannot check; the state is unchanged.

        ``dir_fd`` is an open descriptor of the directory, if the caller goes on to use that.
        """
        if self._number is None:
            return
        reason = self._reason(dir_fd)
        with self._lock:
            changed = self._unavailable != bool(reason)
            self._unavailable = bool(reason)
        if changed and reason:
            log.error(
                "The volume {root} is unavailable ({reason}): no cart is staged, sent or deleted"
                " until it is available again",
                root=str(self._root),
                reason=reason,
            )
        elif changed:
            log.warn("The volume {root} is available again", root=str(self._root))
        if reason:
            raise VolumeUnavailable(reason)

    def confirm_missing(
        self, read: Callable[P, T | None], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return the result of ``read``; if that is None, check first that this is the volume."""
        found = read(*args, **kwargs)
        if found is None:
            self.check()
        return found

    def _reason(self, dir_fd: int | None) -> str:
        try:
            number = read_volume_number(self._root, dir_fd)
        except OSError as error:
            if is_exhausted(error):
                raise_if_transient(error)
            return error.strerror or str(error)
        if number == self._number:
            return ""
        return "its identity file is missing" if number is None else "it is another volume"

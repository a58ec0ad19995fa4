"""Making sure that the disk has all that was written to the volume.  Blocks: for a thread."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cartd.errors import CartdError


class SyncFailed(CartdError):
    """The system could not write all that it had in memory: some of it may be lost."""


class FileSystem:
    """The file system that the volume is on.

    On Linux it alone is synced: data, names and directories, of whoever has written them
    (syncfs(2), which tells since 5.8 of what could not be written).  Other systems sync every disk
    and tell nothing; Windows has no such call, and nothing is done there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd: int | None = None
        self._sync: Callable[[], None] = getattr(os, "sync", _nothing)
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            if hasattr(libc, "syncfs"):
                self._syncfs = libc.syncfs
                self._sync = self._sync_this

    def open(self) -> None:
        """From now on every failure to write is told by the next sync, and by no later one."""
        if os.name != "nt":
            self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def sync(self) -> None:
        """Return when the disk has all that had been written before.

        :raises SyncFailed: not all of it is there, and to try again would not tell of it.
        """
        self._sync()

    def _sync_this(self) -> None:
        if self._fd is None:
            raise SyncFailed("The volume's file system is not synced: it has been let go of")
        if self._syncfs(self._fd) != 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):
                os.sync()  # a sandbox that knows only the older call
                return
            raise SyncFailed(f"The volume's file system cannot be synced: {_reason(number)}")


def _reason(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def _nothing() -> None:
    """There is no way to ask."""

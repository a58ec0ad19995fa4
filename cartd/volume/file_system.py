"""Syncing of the volume's file system to its disk.  Blocks: for a thread."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cartd.errors import CartdError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BLOCK_DEVICES = Path("/sys/dev/block")
_MOUNTED = tuple(Path("/sys/fs", kind) for kind in ("ext4", "xfs", "f2fs"))
"""Where these file systems have a directory for each device that is mounted."""


class SyncFailed(CartdError):
    """The system could not write all dirty pages to the disk: some may be lost."""


class FileSystem:
    """The file system that the volume is on.

    On Linux only this file system is synced: data, names and directories of all processes
    (syncfs(2), which reports write errors since 5.8).  Other systems sync every disk and report
    no errors; Windows has no such call, and nothing is done there.
    """

    page_cache: str | None = None
    """The result of :func:`page_cache_id` when it was opened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fd: int | None = None
        self._sync: Callable[[], None] = _sync_all
        self._syncfs: Callable[[int], int] | None = None
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            if hasattr(libc, "syncfs"):
                self._syncfs = libc.syncfs
                self._sync = self._sync_volume

    def open(self) -> None:
        """Open it: from now on, the next sync reports every write error, later ones do not."""
        if sys.platform != "win32":
            self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.page_cache = page_cache_id(os.fstat(self._fd).st_dev)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def sync(self) -> None:
        """Return when all earlier writes are on the disk.

        :raises SyncFailed: some are not, and a retry would not report it.
        """
        self._sync()

    def _sync_volume(self) -> None:
        if self._fd is None:
            raise SyncFailed("The volume's file system is not synced: it is closed")
        self._check_mount(self._fd)
        assert self._syncfs is not None
        if self._syncfs(self._fd) != 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):
                _sync_all()  # a sandbox that knows only the older call
                return
            raise SyncFailed(f"The volume's file system cannot be synced: {_reason(number)}")

    def _check_mount(self, before: int) -> None:
        """Raise :class:`SyncFailed`, and reopen, if another file system is mounted there now."""
        try:
            device = self._root.stat().st_dev
            if device == os.fstat(before).st_dev and page_cache_id(device) == self.page_cache:
                return
            self.open()
        except OSError as error:
            raise SyncFailed(f"The volume cannot be read: {error.strerror}") from error
        os.close(before)
        raise SyncFailed("The volume's file system has been remounted since the last sync")


def page_cache_id(device: int) -> str | None:
    """Return an id of the page cache that holds the writes to a file system.

    It changes with a boot of the machine and with a remount of the file system, after which
    unwritten pages may be lost.  A killed process or a restarted container does not change it.
    None where it cannot be determined.

    ``device`` is ``st_dev`` of the file system.  That is the same after each mount, so the boot id
    is not enough; the inode number of its directory in sysfs is never reused, and is new for each
    mount.
    """
    if sys.platform == "win32":
        return None
    try:
        boot = BOOT_ID.read_text().strip()
        name = (_BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}").readlink().name
    except OSError:
        return None
    for mounted in _MOUNTED:
        with suppress(OSError):
            return f"{boot} {name} {(mounted / name).stat().st_ino}"
    return None


def _reason(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def _sync_all() -> None:
    """Sync all disks; a no-op on Windows."""
    if sys.platform != "win32":
        os.sync()

"""Making sure that the disk has all that was written to the volume.  Blocks: for a thread."""

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
    """The system could not write all that it had in memory: some of it may be lost."""


class FileSystem:
    """The file system that the volume is on.

    On Linux it alone is synced: data, names and directories, of whoever has written them
    (syncfs(2), which tells since 5.8 of what could not be written).  Other systems sync every disk
    and tell nothing; Windows has no such call, and nothing is done there.
    """

    page_cache: str | None = None
    """What :func:`page_cache_id` gave when it was opened."""

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
        """From now on every failure to write is told by the next sync, and by no later one."""
        if sys.platform != "win32":
            self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.page_cache = page_cache_id(os.fstat(self._fd).st_dev)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def sync(self) -> None:
        """Return when the disk has all that had been written before.

        :raises SyncFailed: not all of it is there, and to try again would not tell of it.
        """
        self._sync()

    def _sync_volume(self) -> None:
        if self._fd is None:
            raise SyncFailed("The volume's file system is not synced: it has been let go of")
        self._check_mount(self._fd)
        assert self._syncfs is not None
        if self._syncfs(self._fd) != 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):
                _sync_all()  # a sandbox that knows only the older call
                return
            raise SyncFailed(f"The volume's file system cannot be synced: {_reason(number)}")

    def _check_mount(self, before: int) -> None:
        """Raises :class:`SyncFailed`, and opens it anew, if another one is mounted there now."""
        try:
            device = self._root.stat().st_dev
            if device == os.fstat(before).st_dev and page_cache_id(device) == self.page_cache:
                return
            self.open()
        except OSError as error:
            raise SyncFailed(f"The volume cannot be looked at: {error.strerror}") from error
        os.close(before)
        raise SyncFailed("The volume's file system has been mounted anew since the last sync")


def page_cache_id(device: int) -> str | None:
    """By what one knows the memory that has what was written to a file system.

    It is another one after another boot of the machine, or when the file system has been unmounted
    since, which may have thrown away what it could not write.  A process that is killed, or a
    container that is restarted, changes nothing.  None where that cannot be told: then nobody
    knows what is left.

    ``device`` is its ``st_dev``, which is the same after each mount; so the boot id is not enough.
    The kernel never gives the number of a directory in sysfs twice, and makes one for each mount of
    the file systems that have any.
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
    """All disks; where there is no way to ask for that, nothing."""
    if sys.platform != "win32":
        os.sync()

"""Locks on open files (flock): the kernel releases them when their process ends, however it ends.

Only such locks prove that a process of this machine is alive: a pid may have been reused, or belong
to another container.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Final

_HELD_ERRNOS: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
"""Errors of flock(2) and of Windows for a lock that is held already."""
_PROC_LOCKS: Final = Path("/proc/locks")


class LocksUnsupported(OSError):
    """The file system or the operating system does not support such locks."""


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int, *, shared: bool) -> None:
        if shared:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(fd: int, *, shared: bool) -> None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file, on Unix also a directory, until ``fd`` is closed; return whether locked.

    It never waits: false if a conflicting lock is held, by another process or by another descriptor
    in this one.

    :raises NoLocks: for any other reason: ENOSYS on Lustre without ``-o flock``, ENOLCK or EBADF on
        NFS, EOPNOTSUPP on some FUSE file systems.
    """
    try:
        _lock(fd, shared=shared)
    except OSError as error:
        if error.errno in _HELD_ERRNOS:
            return False
        raise LocksUnsupported(error.errno, error.strerror) from error
    return True


def lock_holder(fd: int) -> str:
    """Return which process holds a lock on the file, for messages only; '' if unknown."""
    if sys.platform == "win32":
        return ""
    try:
        state = os.fstat(fd)
        device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
        for line in _PROC_LOCKS.read_text().splitlines():
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == device:
                return f"process {fields[4]}"
    except OSError:
        pass  # the file exists on Linux only
    return ""

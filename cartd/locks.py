"""Locks of the system on open files: they end with the process that holds them, however it ends.

This is the only way in which a process of this machine is known to be alive or at work: the number
of a process (its pid) may be another's by now, or another's in a container beside it.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Final

_HELD_ERRNOS: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
"""What flock(2) and Windows say of a lock that somebody else holds."""
_PROC_LOCKS: Final = Path("/proc/locks")


class LocksUnsupported(OSError):
    """The file system, or the system itself, has no such locks."""


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
    """Lock an open file, on Unix a directory too, until ``fd`` is closed; whether that was done.

    It never waits: false if somebody else holds the lock in a way that forbids this one, in this
    process by another descriptor, or in another one.

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
    """Which process holds a lock on the file, in words for a message; '' if that is not known.

    For people only: nothing may be decided by it.
    """
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
        pass  # it is Linux that has this file
    return ""

"""Locks on the volume, shared by all processes: on carts in use, and of the processes themselves.

Everything here except :class:`CartLocks` blocks; call it in a thread.  The kernel releases a lock
(flock) when the process ends, even after SIGKILL.

Carts: a process that sends a cart holds a shared lock on its directory, one that removes it an
exclusive lock.  No caller waits for a lock: a cart in use is removed later, and a cart that is
being removed is not sent.  Windows has no such locks, nor have directories on most network file
systems: there, another process may remove a cart that is being sent.

Processes: a process that stages carts holds leases in the store under a unique name, and keeps a
locked file of that name on the volume (:class:`ProcessLocks`).  So the leases of a killed process
can be taken over at once, and those of a process on another machine, whose lock cannot be seen,
when they expire.  Without file locks on the volume, all leases are taken over when they expire.  A
file that was never locked says so in its content, for processes that see locks there later.

A process is on this machine if its name has this machine's host name or boot id: a container may
get a new host name at each start, but shares the kernel and its locks with the other containers; a
machine gets a new boot id at a restart, but keeps its host name.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import VolumeDamaged, raise_if_transient
from cartd.files import LocksUnsupported, try_lock
from cartd.model import Cart
from cartd.volume.paths import VolumePaths
from cartd.volume.rooted_fs import LOCK_FLAGS, RootedFS, require_regular

ATTEMPTS = 50
RETRY_INTERVAL = 0.02
"""Seconds between two attempts to lock a cart: a check whether it is in use locks it briefly."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_BOOT_ID = "0"
LOCK_ATTEMPTS = 10
"""Attempts of a process to lock its file, which another process may be checking."""
NOT_LOCKED = b"This file is not locked, as the volume had no locks when it was made.\n"
_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_NAME = re.compile(r"(?P<host>[^/\\]+)-(?P<boot>[0-9a-f]{8}|0)-[0-9]+-[0-9a-f]{8}")


def _lock(directory: Path, *, exclusive: bool) -> int | None:
    """Return a descriptor that holds the lock; None without the directory, or without flock.

    Raises ``BlockingIOError`` if a conflicting lock is held.
    """
    try:
        fd = os.open(directory, _FLAGS)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # Windows opens no directory
    except OSError as error:
        raise_if_transient(error)
        raise
    locked = False
    try:
        locked = try_lock(fd, shared=not exclusive)
    except LocksUnsupported:
        return None
    finally:
        if not locked:
            os.close(fd)
    if not locked:
        raise BlockingIOError(errno.EWOULDBLOCK, "another lock is held on it", str(directory))
    return fd


class SharedLock:
    """A shared lock on a cart's directory: no process removes it while the lock is held."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._acquired = False
        self._fd: int | None = None

    def acquire(self) -> None:
        """Acquire the lock, unless it is held or the directory does not exist.

        Raises :class:`VolumeDamaged` if the directory is being removed.
        """
        if self._acquired:
            return
        for _ in range(ATTEMPTS):
            with suppress(BlockingIOError):
                if self._try_acquire():
                    self._acquired = True
                    return
            time.sleep(RETRY_INTERVAL)
        raise VolumeDamaged("The cart is being removed from the volume")

    def release(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _try_acquire(self) -> bool:
        self._fd = fd = _lock(self._directory, exclusive=False)
        if fd is None:
            return True
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), self._directory.lstat()):
                return True
        self.release()  # it was removed before it was locked
        return False


class CartLocks:
    """Locks of the carts against removal."""

    def __init__(self, paths: VolumePaths, threads: ThreadRunner) -> None:
        self._paths = paths
        self._threads = threads

    def shared(self, cart: Cart) -> SharedLock:
        """Return a lock, not acquired yet, that keeps every process from removing the cart."""
        return SharedLock(self._paths.cart(cart.id))

    async def in_use(self, cart_ids: Iterable[int]) -> set[int]:
        """Return those of the carts that this process or another one is sending."""
        directories = {cart_id: self._paths.cart(cart_id) for cart_id in cart_ids}
        return await self._threads.run(_in_use, directories)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[bool]:
    """Yield whether the exclusive lock was acquired; it is held while the block runs."""
    try:
        fd = _lock(directory, exclusive=True)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        if fd is not None:
            os.close(fd)


def _in_use(directories: dict[int, Path]) -> set[int]:
    found = set()
    for cart_id, directory in directories.items():
        with exclusive_lock(directory) as acquired:
            if not acquired:
                found.add(cart_id)
    return found


def boot_id() -> str:
    """Return the boot id of the kernel; ``NO_BOOT_ID`` if it has none."""
    try:
        return BOOT_ID.read_text()[:8]
    except OSError:
        return NO_BOOT_ID


class ProcessLocks:
    """The lock files in one directory; all methods block only for a few file operations."""

    def __init__(self, directory: Path, *, host: str = "", boot: str = "") -> None:
        """``host`` and ``boot`` are this machine's unless given."""
        self._directory = directory
        self._host = re.sub(r"[/\\]", "_", host or socket.gethostname()) or "localhost"
        self._boot = boot or boot_id()
        self.name = f"{self._host}-{self._boot}-{os.getpid()}-{secrets.token_hex(4)}"
        # The directory may be replaced by a symbolic link; its parent is the volume's root.
        self._fs = RootedFS(directory.parent)
        self._lock_fd: int | None = None
        self.no_locks_reason = ""
        """Why other processes cannot see whether this one is alive; '' if the file is locked."""

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"

    def start(self) -> None:
        """Create and lock the file of this process, and remove those of dead processes."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._fs:
            for _ in range(LOCK_ATTEMPTS):
                if self._lock_fd is None:
                    self._lock_fd = self._create_and_lock()
            if self._lock_fd is None:
                reason = "other processes keep locking this process's lock file; start it again"
                raise OSError(errno.EBUSY, reason, str(self._directory))
            with self._fs.directory(self._directory) as opened, os.scandir(opened) as found:
                names = [entry.name for entry in found]
        for name in names:
            if name.endswith(".lock"):
                self._is_dead(name.removesuffix(".lock"))

    def _create_and_lock(self) -> int | None:
        """Return a descriptor of this process's new file, locked if possible; None to retry.

        Another process that starts may remove the file between its creation and its lock.
        """
        path = self._path(self.name)
        fd = self._fs.open(path, LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            if try_lock(fd) and os.path.samestat(os.fstat(fd), self._fs.lstat(path)):
                return fd
        except LocksUnsupported as error:
            self.no_locks_reason = error.strerror or str(error)
            os.write(fd, NOT_LOCKED)
            return fd
        except FileNotFoundError:
            pass
        os.close(fd)
        self._fs.unlink(path)
        return None

    def stop(self) -> None:
        """Release the lock if it is held; other processes may then take over the leases."""
        if self._lock_fd is not None:
            held, self._lock_fd = self._lock_fd, None
            os.close(held)
            with suppress(OSError), self._fs:
                self._fs.unlink(self._path(self.name))

    def dead_among(self, names: Iterable[str]) -> set[str]:
        """Return those of ``names`` whose process has ended on this machine."""
        return {name for name in names if name != self.name and self._is_dead(name)}

    def _is_local(self, name: str) -> bool:
        """Whether the lock of this name can be checked on this machine; false for other names."""
        parts = _NAME.fullmatch(name)
        if parts is None:
            return False
        same_kernel = parts["boot"] == self._boot != NO_BOOT_ID
        return same_kernel or parts["host"] == self._host

    def _is_dead(self, name: str) -> bool:
        if name == self.name or not self._is_local(name):
            return False
        path = self._path(name)
        with self._fs:
            try:
                lock = require_regular(self._fs.open(path, LOCK_FLAGS))
            except FileNotFoundError:
                return True
            except OSError:
                return False  # not a lock file, or not accessible: the leases decide
            try:
                if not try_lock(lock) or os.fstat(lock).st_size:
                    return False
            except LocksUnsupported:
                return False  # the leases decide
            finally:
                os.close(lock)  # Windows cannot remove an open file
            self._fs.unlink(path)
        return True

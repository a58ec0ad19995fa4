"""Locks on carts, shared between all processes on the volume.

All but :class:`CartLocks` blocks: for threads.

Strategy: a process that sends a cart holds a shared lock (flock) on its directory, one that removes
it an exclusive lock.  The kernel releases a lock when its process ends, however it ends.  No caller
waits for a lock: a cart in use is removed later, and a cart that is being removed is not sent.

Windows has no such locks, nor have directories on most network file systems: there, another process
may remove a cart that is being sent.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import VolumeDamaged, raise_if_transient
from cartd.locks import LocksUnsupported, try_lock
from cartd.model import Cart
from cartd.volume.paths import VolumePaths

ATTEMPTS = 50
RETRY_INTERVAL = 0.02
"""Seconds between two attempts to lock a cart: a check whether it is in use locks it briefly."""

_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


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
    """The part of the volume that locks carts against removal."""

    _paths: VolumePaths
    _threads: ThreadRunner

    def shared_lock(self, cart: Cart) -> SharedLock:
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

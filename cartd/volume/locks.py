"""Carts that are being sent, for every process on the volume to see.

All but :class:`CartLocks` blocks: for threads.

Strategy: who sends a cart holds a shared lock (flock) on its directory, who removes it an exclusive
one.  The system lets go of a lock when its process ends, however it ends.  Nobody waits for a lock:
what is in use is removed later, and what is being removed is not sent any more.

Windows has no such locks, and neither have the directories of most network file systems: there,
nothing is kept from being removed by another process.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.disk_errors import raise_if_transient
from cartd.errors import VolumeDamaged
from cartd.locks import LocksUnsupported, try_lock
from cartd.model import Cart
from cartd.threads import ThreadRunner
from cartd.volume.paths import VolumePaths

ATTEMPTS = 50
RETRY_INTERVAL = 0.02
"""Seconds between two tries to mark a cart.  Whoever only looks whether it is in use holds it for a
moment."""

_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def _lock(directory: Path, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock; none if there is no directory, or no such locks.

    Raises ``BlockingIOError`` if somebody has it in a way that forbids this one.
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
        raise BlockingIOError(errno.EWOULDBLOCK, "it is locked by somebody else", str(directory))
    return fd


class SharedLock:
    """A cart's directory that no process removes between ``take`` and ``let_go``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._acquired = False
        self._fd: int | None = None

    def acquire(self) -> None:
        """Mark it as in use, the first time; nothing to do if it is not there.

        Raises :class:`VolumeDamaged` if it is being removed.
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
    """The part of the volume that knows what is being sent."""

    _paths: VolumePaths
    _threads: ThreadRunner

    def shared_lock(self, cart: Cart) -> SharedLock:
        """For who sends the cart: what keeps every process from removing it."""
        return SharedLock(self._paths.cart(cart.id))

    async def in_use(self, cart_ids: Iterable[int]) -> set[int]:
        """Those of the carts that somebody is sending, this process or another one."""
        directories = {cart_id: self._paths.cart(cart_id) for cart_id in cart_ids}
        return await self._threads.run(_in_use, directories)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[bool]:
    """Whether nobody sends from ``directory``; if so, nobody begins to while the block runs."""
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

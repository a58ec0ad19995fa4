"""Collects updates of files and writes them to the store in batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Batcher(Generic[T]):
    """Calls ``write`` with a batch of items when it has ``size`` items or is ``max_age`` old.

    The call of :meth:`add` that fills a batch waits until it is written, so that the speed of the
    store limits the number of collected items.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        now: Callable[[], float],
        *,
        size: int = 1000,
        max_age: float = 1.0,
    ) -> None:
        self._write = write
        self._now = now
        self._size = size
        self._max_age = max_age
        self._items: list[T] = []
        self._since = 0.0
        self._added = 0
        self._written = 0
        self._writing = False
        self._waiting: list[Deferred[None]] = []
        """Calls that wait for the end of the running write."""

    async def add(self, item: T) -> None:
        if not self._items:
            self._since = self._now()
        self._items.append(item)
        self._added += 1
        if len(self._items) >= self._size or self._now() - self._since >= self._max_age:
            await self.flush()

    async def flush(self) -> None:
        """Write all items that were added so far; they are kept if the write fails."""
        wanted = self._added
        while self._written < wanted:
            if self._writing:
                # The running write notifies all waiters itself: a chain in which each notifies
                # the next one would exceed Python's recursion limit.
                ended: Deferred[None] = Deferred()
                self._waiting.append(ended)
                await ended
            else:
                await self._write_all()

    async def _write_all(self) -> None:
        self._writing = True
        items, self._items = self._items, []
        try:
            await self._write(items)
            self._written += len(items)
        except BaseException:
            self._items = [*items, *self._items]
            raise
        finally:
            self._writing = False
            waiting, self._waiting = self._waiting, []
            for ended in waiting:
                ended.callback(None)

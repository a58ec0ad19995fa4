"""Collects what happened to files and writes it to the store in batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import DeferredLock

T = TypeVar("T")


class Batches(Generic[T]):
    """Gives ``write`` lists of items: when enough are there, or the last are old enough.

    Whoever adds an item that fills a batch waits until that is written: so the store's
    speed bounds what is collected.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        now: Callable[[], float],
        *,
        size: int = 1000,
        seconds: float = 1.0,
    ) -> None:
        self._write = write
        self._now = now
        self._size = size
        self._seconds = seconds
        self._items: list[T] = []
        self._since = 0.0
        self._writing = DeferredLock()

    async def add(self, item: T) -> None:
        if not self._items:
            self._since = self._now()
        self._items.append(item)
        if len(self._items) >= self._size or self._now() - self._since >= self._seconds:
            await self.flush()

    async def flush(self) -> None:
        """Write all that has been added so far; what cannot be written is kept."""
        await self._writing.acquire()
        try:
            items, self._items = self._items, []
            if items:
                await self._write(items)
        except BaseException:
            self._items = [*items, *self._items]
            raise
        finally:
            self._writing.release()

"""Collects what happened to files and writes it to the store in batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Batcher(Generic[T]):
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
        """Who waits for the end of the write that is under way."""

    async def add(self, item: T) -> None:
        if not self._items:
            self._since = self._now()
        self._items.append(item)
        self._added += 1
        if len(self._items) >= self._size or self._now() - self._since >= self._max_age:
            await self.flush()

    async def flush(self) -> None:
        """Write all that has been added so far; what cannot be written is kept."""
        wanted = self._added
        while self._written < wanted:
            if self._writing:
                # All at once are told, not each by the one before: a long chain of Deferreds
                # that fire each other is deeper than Python's stack.
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

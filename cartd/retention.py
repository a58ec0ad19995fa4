"""Deletes rows of removed carts from the store once their retention time is over."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.store import Store

BATCH_PAUSE = 0.2
"""Seconds between two transactions, so that others can write."""


class Retention:
    """Deletes expired rows of removed carts, in batches."""

    def __init__(
        self, store: Store, max_age: float, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        """``max_age``: seconds for which a cart's rows are kept after its removal."""
        self._store = store
        self._max_age = max_age
        self._clock = clock
        self._now = now

    async def delete_expired(self) -> None:
        """Delete all expired rows; if cancelled, the next call continues."""
        before = self._now() - self._max_age
        while await self._store.prune_removed(before):
            await deferLater(self._clock, BATCH_PAUSE)

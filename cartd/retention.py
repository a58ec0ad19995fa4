"""How long the store remembers carts that have gone from the volume."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from cartd.store import Store

BATCH_PAUSE = 0.2
"""Seconds between two transactions, in which others write."""


class Retention:
    """Forgets deleted carts, a batch of rows at a time, for as long as there are any."""

    def __init__(
        self, store: Store, max_age: float, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        """``max_age`` is for how many seconds a cart is remembered after it has gone."""
        self._store = store
        self._max_age = max_age
        self._clock = clock
        self._now = now

    async def delete_expired(self) -> None:
        """Cut short, it has forgotten whole batches; the next call goes on."""
        before = self._now() - self._max_age
        while await self._store.prune_removed(before):
            await deferLater(self._clock, BATCH_PAUSE)

"""How many carts may be on their way at the same time, those of all users together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cartd.errors import Unavailable

LIMIT_SETTING = "cartd.max_carts_staging"


class AdmissionControl:
    """Lets a cart in, or not, before anything is done for it.

    ``unfinished`` tells how many carts are neither ready nor in error; those that are let in count
    from then on, so that no more come in by being posted at once.
    """

    def __init__(self, limit: int, unfinished: Callable[[], Awaitable[int]]) -> None:
        self._limit = limit
        self._unfinished = unfinished
        self._slots = 0

    @asynccontextmanager
    async def slot(
        self, is_repost: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[Unavailable | None]:
        """Around a post, from before its manifest is read until its cart is in the store.

        A cart that was posted before, by ``is_repost``, is let in nevertheless, with the error that
        is to be raised if the cart is another one after all.

        :raises Unavailable: there are enough carts.
        """
        self._slots += 1
        try:
            full: Unavailable | None = None
            if await self._unfinished() + self._slots > self._limit:
                full = Unavailable(
                    f"There are {self._limit} carts being staged already ({LIMIT_SETTING});"
                    " post the cart again later",
                    limit=LIMIT_SETTING,
                )
                if not await is_repost():
                    raise full
            yield full
        finally:
            self._slots -= 1

"""How many carts may be on their way at the same time, those of all users together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cartd.errors import Unavailable

LIMIT = "cartd.max_carts_staging"


class Admission:
    """Lets a cart in, or not, before anything is done for it.

    ``unfinished`` tells how many carts are neither ready nor in error; those that are let in count
    from then on, so that no more come in by being posted at once.
    """

    def __init__(self, most: int, unfinished: Callable[[], Awaitable[int]]) -> None:
        self._most = most
        self._unfinished = unfinished
        self._entering = 0

    @asynccontextmanager
    async def entering(
        self, again: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[Unavailable | None]:
        """Around a post, from before its manifest is read until its cart is in the store.

        Who posts ``again``, to see that it has come, is let in nevertheless, with the error that
        is to be raised if the cart is another one after all.

        :raises Unavailable: there are enough carts.
        """
        self._entering += 1
        try:
            full: Unavailable | None = None
            if await self._unfinished() + self._entering > self._most:
                full = Unavailable(
                    f"There are {self._most} carts being staged already ({LIMIT});"
                    " post the cart again later",
                    limit=LIMIT,
                )
                if not await again():
                    raise full
            yield full
        finally:
            self._entering -= 1

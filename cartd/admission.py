"""Admission control: a limit of the carts of all users that are staged at the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cartd.errors import Unavailable

LIMIT_SETTING = "cartd.max_carts_staging"


class AdmissionControl:
    """Admits or rejects a cart before anything is done for it.

    ``unfinished`` returns how many carts are neither ready nor in error.  Admitted carts count at
    once, so that concurrent posts do not exceed the limit.
    """

    def __init__(self, limit: int, unfinished: Callable[[], Awaitable[int]]) -> None:
        self._limit = limit
        self._unfinished = unfinished
        self._slots = 0

    @asynccontextmanager
    async def slot(
        self, is_repost: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[Unavailable | None]:
        """Hold a slot for a post, from before its manifest is read until its cart is stored.

        Without a free slot, a possible repost (``is_repost``) is admitted nevertheless; then the
        value is the error to raise if it turns out to be another cart.

        :raises Unavailable: the limit is reached.
        """
        self._slots += 1
        try:
            full: Unavailable | None = None
            if await self._unfinished() + self._slots > self._limit:
                full = Unavailable(
                    f"{self._limit} carts are being staged, the limit ({LIMIT_SETTING});"
                    " try again later",
                    limit=LIMIT_SETTING,
                )
                if not await is_repost():
                    raise full
            yield full
        finally:
            self._slots -= 1

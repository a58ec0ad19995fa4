"""Since when the carts of this process wait for the archive, and the telling of it to the store.

Strategy: one statement says it of all carts at once, and one more now and then of those that came
later; never more than one is under way.  What the store could not be told, it is told later:
nothing that waits ends by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.errors import CartdError
from cartd.model import Cart
from cartd.store import Store

TELL_AGAIN = 5.0
"""Seconds after which the store is told again what it could not be told."""

log = Logger()


class _News(NamedTuple):
    """What the store is to be told: since when and for what carts wait, or that none does."""

    since: float
    cause: str | None


class WaitingCarts:
    """The carts that ``holder`` stages, as far as they wait.

    Times are those of ``clock``, which nobody sets; the store, and whoever reads, is told dates.
    """

    def __init__(
        self, store: Store, holder: str, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._now = now
        self._since: dict[int, float] = {}
        self._cause: str | None = None
        """What keeps the archive away; none while that is not known for sure."""
        self._marked = False
        """Whether the store may say of some cart that it waits."""
        self._untold: _News | None = None
        self._telling: Deferred[None] | None = None

    def take_up(self, cart: Cart) -> None:
        """A cart that may have waited before, in another process."""
        if cart.waits_since is not None:
            self._since[cart.id] = self._clock.seconds() - (self._now() - cart.waits_since)
            self._marked = True

    def join(self, cart_id: int) -> None:
        """The cart waits from now on, unless it did already."""
        if cart_id in self._since:
            return
        now = self._since[cart_id] = self._clock.seconds()
        if self._cause is not None:
            since = now if self._untold is None else self._untold.since
            self._tell(_News(since, self._cause))

    def since(self, cart_id: int) -> float:
        """Since when the cart, which has joined, waits."""
        return self._since[cart_id]

    def date(self, since: float) -> float:
        """The Unix time of a time of the clock."""
        return self._now() - (self._clock.seconds() - since)

    def begin(self, cause: str, since: float) -> None:
        """The archive is away: let it be said of all carts."""
        self._cause = cause
        self._marked = True
        self._tell(_News(since, cause))

    def end(self) -> None:
        """The archive answers: nobody waits."""
        self._since.clear()
        self._cause = None
        if self._marked:
            self._marked = False
            self._tell(_News(self._clock.seconds(), None))

    def forget(self) -> None:
        """Nobody knows whether the archive is away; what is said of the carts still is."""
        self._cause = None

    async def stop(self) -> None:
        """Tell the store no more: what it says of the carts is for the next start."""
        telling = self._telling
        if telling is not None:
            telling.cancel()
            await telling

    def _tell(self, news: _News) -> None:
        self._untold = news
        if self._telling is None:
            self._telling = Deferred.fromCoroutine(self._tell_all())
            self._telling.addBoth(self._told)

    async def _tell_all(self) -> None:
        while self._untold is not None:
            news, self._untold = self._untold, None
            try:
                await self._record(news)
            except CancelledError:
                raise
            except Exception as error:
                if isinstance(error, CartdError):
                    log.warn("It is not recorded yet which carts wait: {error}", error=error)
                else:
                    log.failure("It is not recorded yet which carts wait")
                self._untold = self._untold or news
                await deferLater(self._clock, TELL_AGAIN)

    async def _record(self, news: _News) -> None:
        if news.cause is None:
            await self._store.end_waiting(self._holder)
        else:
            await self._store.begin_waiting(self._holder, self.date(news.since), news.cause)

    def _told(self, _: object) -> None:
        """All is told, or :meth:`stop` has put an end to it."""
        self._telling = None

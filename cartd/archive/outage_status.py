"""Since when the carts of this process wait for the archive, and the recording of it in the store.

Strategy: one statement records it for all carts at once, and one more now and then for those that
came later; never two at a time.  A failed statement is retried: staging does not fail by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.errors import CartdError
from cartd.model import Cart

RETRY_SECONDS = 5.0
"""Seconds after which a failed statement is retried."""

log = Logger()


class OutageStore(Protocol):
    """Records which carts wait for the archive."""

    async def begin_waiting(self, holder: str, since: float, cause: str) -> None: ...

    async def end_waiting(self, holder: str) -> None: ...


class _Update(NamedTuple):
    """What to record: since when and why carts wait, or, without a cause, that none does."""

    since: float
    cause: str | None


class OutageStatus:
    """Which of the carts that ``holder`` stages wait for the archive, and since when.

    Times are those of ``clock``, which is steady; the store and messages have dates.
    """

    def __init__(
        self, store: OutageStore, holder: str, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._now = now
        self._since: dict[int, float] = {}
        self._cause: str | None = None
        """The cause of the outage; None while no outage is confirmed."""
        self._recorded = False
        """Whether the store may have a cart that waits."""
        self._pending: _Update | None = None
        self._writing: Deferred[None] | None = None

    def resume_cart(self, cart: Cart) -> None:
        """Begin to stage a cart, which may have waited before, in another process."""
        if cart.waits_since is not None:
            self._since[cart.id] = self._clock.seconds() - (self._now() - cart.waits_since)
            self._recorded = True

    def join(self, cart_id: int) -> None:
        """The cart waits from now on, unless it did already."""
        if cart_id in self._since:
            return
        now = self._since[cart_id] = self._clock.seconds()
        if self._cause is not None:
            since = now if self._pending is None else self._pending.since
            self._submit(_Update(since, self._cause))

    def since(self, cart_id: int) -> float:
        """Since when the cart, which has joined, waits."""
        return self._since[cart_id]

    def date(self, since: float) -> float:
        """The Unix time of a time of the clock."""
        return self._now() - (self._clock.seconds() - since)

    def begin(self, cause: str, since: float) -> None:
        """Record the outage for all carts."""
        self._cause = cause
        self._recorded = True
        self._submit(_Update(since, cause))

    def end(self) -> None:
        """The archive answers: record that no cart waits."""
        self._since.clear()
        self._cause = None
        if self._recorded:
            self._recorded = False
            self._submit(_Update(self._clock.seconds(), None))

    def forget_cause(self) -> None:
        """Record the outage for no further carts; what is recorded stays."""
        self._cause = None

    async def stop(self) -> None:
        """Write no more: what the store has is for the next start."""
        writing = self._writing
        if writing is not None:
            writing.cancel()
            await writing

    def _submit(self, update: _Update) -> None:
        self._pending = update
        if self._writing is None:
            self._writing = Deferred.fromCoroutine(self._write_pending())
            self._writing.addBoth(self._writing_ended)

    async def _write_pending(self) -> None:
        while self._pending is not None:
            update, self._pending = self._pending, None
            try:
                await self._write(update)
            except CancelledError:
                raise
            except Exception as error:
                if isinstance(error, CartdError):
                    log.warn(
                        "Cannot record yet which carts wait for the archive: {error}", error=error
                    )
                else:
                    log.failure("Cannot record yet which carts wait for the archive")
                self._pending = self._pending or update
                await deferLater(self._clock, RETRY_SECONDS)

    async def _write(self, update: _Update) -> None:
        if update.cause is None:
            await self._store.end_waiting(self._holder)
        else:
            await self._store.begin_waiting(self._holder, self.date(update.since), update.cause)

    def _writing_ended(self, _: object) -> None:
        """All is written, or :meth:`stop` has cancelled it."""
        self._writing = None

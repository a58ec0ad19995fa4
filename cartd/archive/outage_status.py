"""Outages of the archive: which carts and files wait, since when, and the recording in the store.

Strategy: one statement records it for all carts at once, and one more now and then for those that
came later; never two at a time.  A failed statement is retried; a failed write does not stop
staging.

Of the files that wait until the circuit breaker is closed, those in front are not known to have
failed; a file that is probed moves to the end.  So a file that fails although the archive is
available is probed once, however often it would fail.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.errors import CartdError, Problem
from cartd.model import Cart, format_time
from cartd.tracing import without_context

log = Logger()

RETRY_SECONDS = 5.0
"""Seconds after which a failed statement is retried."""


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
        self._begun = 0.0
        """From when the present outage is not counted yet."""
        self._past_seconds = 0.0
        """Seconds of outages that were counted, for :meth:`new_seconds`."""
        self._recorded = False
        """Whether the store may have a cart that waits."""
        self._pending: _Update | None = None
        self._writing: Deferred[None] | None = None

    @property
    def cause(self) -> str | None:
        """The cause of the present outage; None if there is none, or if no cart waits."""
        return self._cause

    def new_seconds(self) -> float:
        """Return how long outages have lasted since the last call, the present one included."""
        self._count_seconds()
        new, self._past_seconds = self._past_seconds, 0.0
        return new

    def _count_seconds(self) -> None:
        if self._cause is not None:
            now = self._clock.seconds()
            self._past_seconds += now - self._begun
            self._begun = now

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
        self._count_seconds()
        self._cause, self._begun = cause, since
        self._recorded = True
        self._submit(_Update(since, cause))

    def end(self) -> None:
        """The archive answers: record that no cart waits."""
        self._since.clear()
        if self._cause is not None:
            self._count_seconds()
            self._cause = None
        if self._recorded:
            self._recorded = False
            self._submit(_Update(self._clock.seconds(), None))

    def forget_cause(self) -> None:
        """Record the outage for no further carts; what is recorded stays."""
        self._count_seconds()
        self._cause = None

    async def stop(self) -> None:
        """Stop writing.  The stored status stays; the next start reads it."""
        writing = self._writing
        if writing is not None:
            writing.cancel()
            await writing

    def _submit(self, update: _Update) -> None:
        self._pending = update
        if self._writing is None:
            self._writing = without_context(Deferred.fromCoroutine, self._write_pending())
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


class OutageTooLong(CartdError):
    """The archive has been unavailable for longer than a cart waits for it."""

    problem = Problem.ARCHIVE_UNAVAILABLE


@dataclass(eq=False, slots=True)
class _Waiter:
    cart_id: int
    archive_id: str
    failed: bool
    released: Deferred[bool]


class Waiters:
    """Files that wait until the circuit breaker is closed: which to probe next, which to release.

    A file waits at most ``limit`` seconds from when its cart began to wait.
    """

    def __init__(self, status: OutageStatus, clock: IReactorTime, limit: float) -> None:
        self._status = status
        self._clock = clock
        self._limit = limit
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def join(self, cart_id: int, archive_id: str, *, failed: bool) -> Deferred[bool]:
        """Fire with the argument of :meth:`release`; cancel it to wait no longer."""
        released: Deferred[bool] = Deferred(lambda _: self._waiters.pop(waiter, None))
        waiter = _Waiter(cart_id, archive_id, failed, released)
        self._waiters[waiter] = None
        if not failed:
            self._waiters.move_to_end(waiter, last=False)
        self._status.join(cart_id)
        return released

    def any_unprobed(self) -> bool:
        """Whether a file waits that is not known to have failed."""
        return bool(self._waiters) and not next(iter(self._waiters)).failed

    def next_to_probe(self) -> str:
        """Return the archive id of the file that was not probed for the longest time."""
        waiter = next(iter(self._waiters))
        waiter.failed = True
        self._waiters.move_to_end(waiter)
        return waiter.archive_id

    def release(self, was_unavailable: bool) -> None:
        """Release all that wait now; a file that joins meanwhile waits for the next release."""
        waiting = list(self._waiters)
        self._waiters.clear()
        for waiter in waiting:
            if not waiter.released.called:  # the callback of one may cancel others
                waiter.released.callback(was_unavailable)

    def seconds_left(self) -> float:
        """Return the seconds until the next cart reaches the limit; infinite if none waits."""
        cart_ids = {waiter.cart_id for waiter in self._waiters}
        first = min((self._status.since(cart_id) for cart_id in cart_ids), default=inf)
        return first + self._limit - self._clock.seconds()

    def fail_expired(self, cause: Exception) -> None:
        """Fail the files of carts that have reached the limit, with :class:`OutageTooLong`."""
        if self.seconds_left() > 0:
            return
        now = self._clock.seconds()
        for waiter in list(self._waiters):
            since = self._status.since(waiter.cart_id)
            # The errback ends the whole cart, and so removes others from the list.
            if waiter in self._waiters and since + self._limit <= now:
                del self._waiters[waiter]
                waiter.released.errback(OutageTooLong(self._timeout_message(since, cause)))

    def _timeout_message(self, since: float, cause: Exception) -> str:
        date = format_time(self._status.date(since))
        return (
            f"The archive has been unavailable since {date}, longer than the"
            f" outage_limit of {self._limit:g} seconds: {cause}"
        )

"""The files that wait until the circuit breaker is closed: which to probe next, which to release.

Strategy: files in front are not known to have failed; a file that is probed moves to the end.  So a
file that fails although the archive is available is probed once, however often it would fail.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from cartd.archive.outage_status import OutageStatus
from cartd.errors import CartdError
from cartd.model import format_time


class OutageTooLong(CartdError):
    """The archive has been unavailable for longer than a cart waits for it."""


@dataclass(eq=False, slots=True)
class _Waiter:
    cart_id: int
    archive_id: str
    failed: bool
    released: Deferred[bool]


class Waiters:
    """A file waits at most ``limit`` seconds from when its cart began to wait."""

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

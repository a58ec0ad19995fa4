"""The files that wait for an archive which may be away: whom to ask about next, and whom to tell.

Strategy: those in front are not known to have failed; who has been asked about goes to the end.  So
a file that alone fails is asked about once, however often it would fail.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from cartd.circuit_breaker.outage_status import WaitingCarts
from cartd.errors import CartdError
from cartd.model import format_time


class OutageTooLong(CartdError):
    """The archive has been away for longer than a cart waits for it."""


@dataclass(eq=False, slots=True)
class _Waiter:
    cart_id: int
    archive_id: str
    failed: bool
    told: Deferred[bool]


class WaitingFiles:
    """Each waits at most ``limit`` seconds from when its cart began to."""

    def __init__(self, carts: WaitingCarts, clock: IReactorTime, limit: float) -> None:
        self._carts = carts
        self._clock = clock
        self._limit = limit
        self._waiting: OrderedDict[_Waiter, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def join(self, cart_id: int, archive_id: str, *, failed: bool) -> Deferred[bool]:
        """Fires with what :meth:`tell` says; who does not want to wait any more cancels it."""
        told: Deferred[bool] = Deferred(lambda _: self._waiting.pop(waiter, None))
        waiter = _Waiter(cart_id, archive_id, failed, told)
        self._waiting[waiter] = None
        if not failed:
            self._waiting.move_to_end(waiter, last=False)
        self._carts.join(cart_id)
        return told

    def any_without_failure(self) -> bool:
        """Whether a file waits that is not known to have failed."""
        return bool(self._waiting) and not next(iter(self._waiting)).failed

    def next_to_ask(self) -> str:
        """The archive's id of a file that has not been asked about for longest."""
        waiter = next(iter(self._waiting))
        waiter.failed = True
        self._waiting.move_to_end(waiter)
        return waiter.archive_id

    def tell(self, was_away: bool) -> None:
        """Let all go on that wait now; those who come back meanwhile wait again."""
        waiting = list(self._waiting)
        self._waiting.clear()
        for waiter in waiting:
            if not waiter.told.called:  # who was told may have cancelled others
                waiter.told.callback(was_away)

    def seconds_left(self) -> float:
        """Until the next cart has waited for as long as it may; infinite if none waits."""
        cart_ids = {waiter.cart_id for waiter in self._waiting}
        first = min((self._carts.since(cart_id) for cart_id in cart_ids), default=inf)
        return first + self._limit - self._clock.seconds()

    def end_the_late(self, cause: Exception) -> None:
        """Fail, with :class:`OutageTooLong`, for the carts that have waited for long enough."""
        if self.seconds_left() > 0:
            return
        now = self._clock.seconds()
        for waiter in list(self._waiting):
            since = self._carts.since(waiter.cart_id)
            # Who is told ends its whole cart, and so others of the list.
            if waiter in self._waiting and since + self._limit <= now:
                del self._waiting[waiter]
                waiter.told.errback(OutageTooLong(self._complaint(since, cause)))

    def _complaint(self, since: float, cause: Exception) -> str:
        date = format_time(self._carts.date(since))
        return (
            f"The archive has been away since {date}, which is longer than the"
            f" outage_limit of {self._limit:g} seconds: {cause}"
        )

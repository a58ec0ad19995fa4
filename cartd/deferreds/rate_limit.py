"""Rate limiter: a token bucket that serves owners fairly."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

BURST_SECONDS = 0.1
"""Seconds of unused tokens that are kept: a rate of 100 a second allows bursts of ten."""
MIN_TIMER_SECONDS = 0.01
"""Seconds between two timers at least, so that a high rate does not need one per token."""


class FairRateLimiter:
    """A token bucket (``per_second`` tokens) that serves owners in rotation.

    Waiters of one owner are served in order.  No state is kept of an owner without waiters.
    """

    def __init__(self, per_second: float, clock: IReactorTime) -> None:
        self._per_second = per_second
        self._clock = clock
        self._capacity = max(per_second * BURST_SECONDS, 1.0)
        self._tokens = self._capacity
        self._refilled_at = clock.seconds()
        self._waiting: OrderedDict[Hashable, deque[Deferred[None]]] = OrderedDict()
        self._timer: IDelayedCall | None = None
        self._granting = False

    def acquire(self, owner: Hashable = None) -> Deferred[None]:
        """Fire when the owner gets a token; may be cancelled until then."""
        token: Deferred[None] = Deferred(lambda left: self._cancelled(owner, left))
        self._waiting.setdefault(owner, deque()).append(token)
        self._grant()
        return token

    def _cancelled(self, owner: Hashable, token: Deferred[None]) -> None:
        queue = self._waiting[owner]
        queue.remove(token)
        if not queue:
            del self._waiting[owner]
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _grant(self) -> None:
        if self._granting:
            return  # called by a waiter that got a token, within the loop below
        self._granting = True
        try:
            self._refill()
            while self._waiting and self._tokens >= 1.0:
                self._tokens -= 1.0
                self._next_waiter().callback(None)
        finally:
            self._granting = False
        if self._waiting and self._timer is None:
            pause = max((1.0 - self._tokens) / self._per_second, MIN_TIMER_SECONDS)
            self._timer = self._clock.callLater(pause, self._refill_and_grant)

    def _refill_and_grant(self) -> None:
        self._timer = None
        self._grant()

    def _refill(self) -> None:
        """Add the tokens since the last refill; rounding must not cost another timer."""
        now = self._clock.seconds()
        came = (now - self._refilled_at) * self._per_second
        self._tokens = min(self._tokens + came + 1e-9, self._capacity)
        self._refilled_at = now

    def _next_waiter(self) -> Deferred[None]:
        owner, queue = self._waiting.popitem(last=False)
        token = queue.popleft()
        if queue:
            self._waiting[owner] = queue
        return token

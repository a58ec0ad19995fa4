"""How long one client may take for what it has to do next.

Strategy: what is waited for changes several times in each request, so a change only sets when it
is due.  One timer runs for all of them; if it fires before that, it is set again for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from math import inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from cartd.server.limits import Limits

MIN_PROGRESS = 64 * 2**10
"""Bytes of a download that a client must take within ``stall_timeout``: who takes fewer, one at a
time for example, holds its cart in its place as one does who takes none."""


class Timeout(Enum):
    """What a client is late with."""

    KEEPALIVE = auto()
    """It has not begun with its first request, or with the next one."""
    HEADER = auto()
    """It has begun a request, but its head is not whole."""
    BODY = auto()
    """The whole body has not come in time."""
    IDLE = auto()
    """Nothing of the body has come for some time."""
    STALL = auto()
    """It has not taken enough of what it is sent."""


_IN_BODY = (Timeout.BODY, Timeout.IDLE)


class Timeouts:
    """The timers of one connection; ``on_timeout`` is called once, and then all are stopped."""

    def __init__(
        self, limits: Limits, clock: IReactorTime, on_timeout: Callable[[Timeout], object]
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._on_timeout = on_timeout
        self._call: IDelayedCall | None = None
        self._fires_at = inf
        self._running = Timeout.KEEPALIVE
        self._deadline = inf
        self._body_deadline = inf
        self._paused_at = 0.0
        self._stall_left = limits.stall_timeout
        """Seconds that the client still has for the next bytes of its download."""
        self._sent_at_start = 0
        """How many bytes it had been sent when they began."""

    @property
    def between_requests(self) -> bool:
        return self._running is Timeout.KEEPALIVE

    def on_connect(self) -> None:
        """The first request may begin."""
        self._start(Timeout.KEEPALIVE, self._limits.header_timeout)

    def on_header_start(self, *, first: bool) -> None:
        """The first bytes of a request have come; of the ``first`` one the time runs already."""
        if first:
            self._running = Timeout.HEADER
        else:
            self._start(Timeout.HEADER, self._limits.header_timeout)

    def on_body_start(self) -> None:
        self._body_deadline = self._clock.seconds() + self._limits.body_timeout
        self._running = Timeout.BODY
        self.on_data()

    def on_data(self) -> None:
        """Bytes have come; they count only in a body."""
        if self._running in _IN_BODY:
            left = self._body_deadline - self._clock.seconds()
            idle = self._limits.idle_timeout
            self._start(Timeout.IDLE if idle < left else Timeout.BODY, min(idle, left))

    def on_disk_pause(self, paused: bool) -> None:
        """No more of a body is read for the moment, or it is again: the time stands still."""
        now = self._clock.seconds()
        if self._running in _IN_BODY and paused and self._deadline != inf:
            self._paused_at, self._deadline = now, inf
        elif self._running in _IN_BODY and not paused and self._deadline == inf:
            self._body_deadline += now - self._paused_at
            self.on_data()

    def on_request_complete(self) -> None:
        """It is the service's turn."""
        self._running, self._deadline = Timeout.STALL, inf
        self._stall_left, self._sent_at_start = self._limits.stall_timeout, 0

    def on_response_end(self) -> None:
        """The next request may begin."""
        self._start(Timeout.KEEPALIVE, self._limits.keepalive_timeout)

    def on_send_pause(self, paused: bool, sent: int) -> None:
        """The client has yet to take some of the ``sent`` bytes, or has made room for more.

        The time stands still while it is not the client who is waited for.
        """
        if paused:
            if sent - self._sent_at_start >= MIN_PROGRESS:
                self._stall_left, self._sent_at_start = self._limits.stall_timeout, sent
            self._start(Timeout.STALL, self._stall_left)
        elif self._deadline != inf:
            self._stall_left = max(self._deadline - self._clock.seconds(), 0.0)
            self._deadline = inf

    def stop(self) -> None:
        self._deadline = inf
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _start(self, timeout: Timeout, seconds: float) -> None:
        self._running = timeout
        self._deadline = self._clock.seconds() + seconds
        if self._call is None or self._deadline < self._fires_at:
            self._schedule(seconds)

    def _schedule(self, seconds: float) -> None:
        self._fires_at = self._clock.seconds() + seconds
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._check)
        else:
            self._call.reset(seconds)

    def _check(self) -> None:
        self._call = None
        left = self._deadline - self._clock.seconds()
        if self._deadline == inf:
            return
        if left > 0:
            self._schedule(left)
        else:
            self._deadline = inf
            self._on_timeout(self._running)

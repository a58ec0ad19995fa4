"""The timeouts of one connection: header, body, idle, stall and keepalive.

The current timeout changes several times per request, so a change only sets its deadline.  One
delayed call serves all; if it fires before the deadline, it is scheduled again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from math import inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from cartd.http.limits import Limits

MIN_PROGRESS = 64 * 2**10
"""Bytes of a download that a client must read within ``stall_timeout``.  Otherwise a client that
reads one byte at a time would keep its cart pinned for ever."""


class Timeout(Enum):
    """The timeout that is running."""

    KEEPALIVE = auto()
    """Waiting for the first or the next request."""
    HEADER = auto()
    """Waiting for the rest of a request's head."""
    BODY = auto()
    """Waiting for the rest of the body, limited by ``body_timeout``."""
    IDLE = auto()
    """Waiting for more of the body, limited by ``idle_timeout``."""
    STALL = auto()
    """Waiting for the client to read more of the response."""


_IN_BODY = (Timeout.BODY, Timeout.IDLE)


class Timeouts:
    """The timeouts of one connection; calls ``on_timeout`` when the first expires, then stops."""

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
        """Seconds left for the next ``MIN_PROGRESS`` bytes of the download."""
        self._sent_at_start = 0
        """Bytes sent when ``_stall_left`` was reset."""

    @property
    def between_requests(self) -> bool:
        return self._running is Timeout.KEEPALIVE

    def on_connect(self) -> None:
        """Start the timeout of the first head."""
        self._start(Timeout.KEEPALIVE, self._limits.header_timeout)

    def on_header_start(self, *, first: bool) -> None:
        """The first bytes of a request arrived.  For the ``first`` one the timeout runs already."""
        if first:
            self._running = Timeout.HEADER
        else:
            self._start(Timeout.HEADER, self._limits.header_timeout)

    def on_body_start(self) -> None:
        self._body_deadline = self._clock.seconds() + self._limits.body_timeout
        self._running = Timeout.BODY
        self.on_data()

    def on_data(self) -> None:
        """Data arrived.  Restarts the idle timeout within a body, else does nothing."""
        if self._running in _IN_BODY:
            left = self._body_deadline - self._clock.seconds()
            idle = self._limits.idle_timeout
            self._start(Timeout.IDLE if idle < left else Timeout.BODY, min(idle, left))

    def on_disk_pause(self, paused: bool) -> None:
        """Suspend the timeouts of the body while reading is paused."""
        now = self._clock.seconds()
        if self._running in _IN_BODY and paused and self._deadline != inf:
            self._paused_at, self._deadline = now, inf
        elif self._running in _IN_BODY and not paused and self._deadline == inf:
            self._body_deadline += now - self._paused_at
            self.on_data()

    def on_request_complete(self) -> None:
        """The request is complete: no timeout runs while the service works."""
        self._running, self._deadline = Timeout.STALL, inf
        self._stall_left, self._sent_at_start = self._limits.stall_timeout, 0

    def on_response_end(self) -> None:
        """Start the keepalive timeout."""
        self._start(Timeout.KEEPALIVE, self._limits.keepalive_timeout)

    def on_send_pause(self, paused: bool, sent: int) -> None:
        """Run the stall timeout while the client has not read all of the ``sent`` bytes.

        It is suspended while the connection waits for the service.
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

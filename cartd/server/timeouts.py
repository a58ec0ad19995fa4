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

PROGRESS = 64 * 2**10
"""Bytes of a download that a client must take within ``stall_timeout``: who takes fewer, one at a
time for example, holds its cart in its place as one does who takes none."""


class Late(Enum):
    """What a client is late with."""

    REQUEST = auto()
    """It has not begun with its first request, or with the next one."""
    HEAD = auto()
    """It has begun a request, but its head is not whole."""
    BODY = auto()
    """The whole body has not come in time."""
    PAUSE = auto()
    """Nothing of the body has come for some time."""
    DOWNLOAD = auto()
    """It has not taken enough of what it is sent."""


_IN_BODY = (Late.BODY, Late.PAUSE)


class ClientTimers:
    """The timers of one connection; ``late`` is called once, and then nothing is timed any more."""

    def __init__(self, limits: Limits, clock: IReactorTime, late: Callable[[Late], object]) -> None:
        self._limits = limits
        self._clock = clock
        self._late = late
        self._call: IDelayedCall | None = None
        self._calls_at = inf
        self._awaited = Late.REQUEST
        self._due = inf
        self._body_due = inf
        self._stands_since = 0.0
        self._left = limits.stall_timeout
        """Seconds that the client still has for the next bytes of its download."""
        self._mark = 0
        """How many bytes it had been sent when they began."""

    @property
    def between_requests(self) -> bool:
        return self._awaited is Late.REQUEST

    def connected(self) -> None:
        """The first request may begin."""
        self._expect(Late.REQUEST, self._limits.header_timeout)

    def head_begins(self, *, first: bool) -> None:
        """The first bytes of a request have come; of the ``first`` one the time runs already."""
        if first:
            self._awaited = Late.HEAD
        else:
            self._expect(Late.HEAD, self._limits.header_timeout)

    def body_begins(self) -> None:
        self._body_due = self._clock.seconds() + self._limits.body_timeout
        self._awaited = Late.BODY
        self.received()

    def received(self) -> None:
        """Bytes have come; they count only in a body."""
        if self._awaited in _IN_BODY:
            left = self._body_due - self._clock.seconds()
            pause = self._limits.idle_timeout
            self._expect(Late.PAUSE if pause < left else Late.BODY, min(pause, left))

    def disk_waits(self, waits: bool) -> None:
        """No more of a body is read for the moment, or it is again: the time stands still."""
        now = self._clock.seconds()
        if self._awaited in _IN_BODY and waits and self._due != inf:
            self._stands_since, self._due = now, inf
        elif self._awaited in _IN_BODY and not waits and self._due == inf:
            self._body_due += now - self._stands_since
            self.received()

    def request_is_whole(self) -> None:
        """It is the service's turn."""
        self._awaited, self._due = Late.DOWNLOAD, inf
        self._left, self._mark = self._limits.stall_timeout, 0

    def answered(self) -> None:
        """The next request may begin."""
        self._expect(Late.REQUEST, self._limits.keepalive_timeout)

    def download_waits(self, waits: bool, sent: int) -> None:
        """The client has yet to take some of the ``sent`` bytes, or has made room for more.

        The time stands still while it is not the client who is waited for.
        """
        if waits:
            if sent - self._mark >= PROGRESS:
                self._left, self._mark = self._limits.stall_timeout, sent
            self._expect(Late.DOWNLOAD, self._left)
        elif self._due != inf:
            self._left = max(self._due - self._clock.seconds(), 0.0)
            self._due = inf

    def stop(self) -> None:
        self._due = inf
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _expect(self, awaited: Late, seconds: float) -> None:
        self._awaited = awaited
        self._due = self._clock.seconds() + seconds
        if self._call is None or self._due < self._calls_at:
            self._set(seconds)

    def _set(self, seconds: float) -> None:
        self._calls_at = self._clock.seconds() + seconds
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._look)
        else:
            self._call.reset(seconds)

    def _look(self) -> None:
        self._call = None
        left = self._due - self._clock.seconds()
        if self._due == inf:
            return
        if left > 0:
            self._set(left)
        else:
            self._due = inf
            self._late(self._awaited)

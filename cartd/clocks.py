"""Makes the reactor's timers use the monotonic clock; dates use the system clock.

Twisted's reactor uses the system clock.  If that is set back by an hour, every timer waits an hour
longer: leases are not renewed, stalled connections not closed.  If it is set ahead, all timers fire
at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def monotonic_clock_from(
    wall: Callable[[], float], monotonic: Callable[[], float]
) -> Callable[[], float]:
    """Return a clock that equals ``wall`` now, and advances as ``monotonic`` does."""
    offset = wall() - monotonic()
    return lambda: offset + monotonic()


def use_monotonic_clock(reactor: Any) -> None:
    """Make the timers of ``reactor`` use the monotonic clock.

    It starts at the present time, so that calls scheduled before remain correct; but
    ``reactor.seconds()`` is no longer a date once the system clock is changed.
    """
    reactor.seconds = monotonic_clock_from(time.time, time.monotonic)

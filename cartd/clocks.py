"""The two clocks: a steady one for whatever waits, the machine's for dates.

Twisted's reactor reads the machine's clock.  Set back by an hour it would make every timer
wait an hour longer: no lease is renewed, no stalled connection given up.  Set ahead, all timers
would fire at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def monotonic_clock_from(
    wall: Callable[[], float], monotonic: Callable[[], float]
) -> Callable[[], float]:
    """A clock that agrees with ``wall`` now, and goes on from there as ``monotonic`` does."""
    offset = wall() - monotonic()
    return lambda: offset + monotonic()


def use_monotonic_clock(reactor: Any) -> None:
    """Have the timers of ``reactor`` go by a steady clock.

    It begins at the present time, so what was scheduled before stays right.  After a while
    ``reactor.seconds()`` is no date.
    """
    reactor.seconds = monotonic_clock_from(time.time, time.monotonic)

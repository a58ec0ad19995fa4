"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
LONGEST_PAUSE_ASKED = 300.0
"""Seconds of an archive's Retry-After that are honoured."""


def waits(tries: int, random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between ``tries`` tries: one fewer than the tries."""
    return islice(endless_waits(random), tries - 1)


def endless_waits(random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between tries that have no end.

    They double from about half a second.  ``random`` gives a number in [0, 1) that spreads
    each wait by a quarter either way, so that files that failed together do not come back
    together.
    """
    wait = FIRST_WAIT
    while True:
        yield wait * (0.75 + random() / 2)
        wait = min(wait * 2, LONGEST_WAIT)


def as_asked(wait: float, asked: float | None) -> float:
    """The wait, or a longer one that was asked for, within reason."""
    return max(wait, min(asked or 0.0, LONGEST_PAUSE_ASKED))

"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0


def waits(tries: int, random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between ``tries`` tries: one fewer than the tries.

    They double from about half a second.  ``random`` gives a number in [0, 1) that spreads
    each wait by a quarter either way, so that files that failed together do not come back
    together.
    """
    for doubling in range(tries - 1):
        yield min(FIRST_WAIT * 2**doubling, LONGEST_WAIT) * (0.75 + random() / 2)

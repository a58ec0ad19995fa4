"""How many requests at once an archive can bear.

Strategy: Pacifica's own archive interface, run with threads, keeps one file handle for all of
them: requests that meet in it get each other's bytes.  A wrong file now and then is what any
archive may have.  But when several come in a short while, and not alone, files are asked for one
at a time from then on; after a while two at a time are tried, then four and so on.  A wrong file on
that way takes it back to one, and doubles the while.  A file that comes wrong twice in the same way
would have come so in any company: what was concluded from it is taken back.

With threads or without, it keeps no connection open while it has ten, and the time that goes into
new ones is more than is won by asking for more at once.  So each connection that an archive closes
after its answer means one request fewer at once, down to a few; many that it keeps, one more.
"""

from __future__ import annotations

from collections.abc import Callable

CORRUPTION_THRESHOLD = 2.0
"""So many wrong files together mean that it is the company."""
SCORE_DECAY = 0.9
"""What is left of a suspicion after a file that is right."""
MIN_LIMIT = 8
"""Requests at once that are left in any case: of so many connections, Pacifica keeps each."""
INCREASE = 1 / 256
"""Requests more at once for each connection that is kept."""
FIRST_DOUBLING_SECONDS = 5.0
MAX_DOUBLING_SECONDS = 300.0
"""Seconds."""


class AdaptiveLimit:
    """Told how files come, says how many may be asked for at once; at most ``maximum``."""

    def __init__(self, maximum: int, now: Callable[[], float]) -> None:
        self._maximum = maximum
        self._minimum = min(MIN_LIMIT, maximum)
        self._limit = float(maximum)
        """How many requests at once the archive has kept connections for."""
        self._now = now
        self._corruption_score = 0.0
        self._serial_since: float | None = None
        self._serial_score = 0.0
        """The suspicion for which files are asked for alone."""
        self._doubling_seconds = FIRST_DOUBLING_SECONDS

    def current(self) -> int:
        if self._serial_since is None:
            return int(self._limit)
        doublings = int((self._now() - self._serial_since) / self._doubling_seconds)
        if doublings >= self._maximum.bit_length():
            self._end_serial()
            return int(self._limit)
        return min(1 << doublings, int(self._limit))

    def record_response(self, reusable: bool) -> None:
        """An answer has come, and its connection is kept by the archive or closed."""
        if reusable:
            self._limit = min(self._limit + INCREASE, self._maximum)
        else:
            self._limit = max(self._limit - 1, self._minimum)

    def record_intact_file(self) -> None:
        """A file has come as it should."""
        self._corruption_score *= SCORE_DECAY

    def record_corrupt_file(self) -> bool:
        """Other bytes than declared have come, for the first time for this file.

        Says whether its company is suspected of that.
        """
        if self.current() == 1:
            return False  # it met nobody
        self._corruption_score += 1
        if self._serial_since is not None:
            self._doubling_seconds = min(self._doubling_seconds * 2, MAX_DOUBLING_SECONDS)
        elif self._corruption_score < CORRUPTION_THRESHOLD:
            return True
        self._serial_score += self._corruption_score
        self._corruption_score = 0.0
        self._serial_since = self._now()
        return True

    def record_same_corruption(self) -> None:
        """A file for which its company was suspected has come wrong in the same way again."""
        if self._serial_since is None:
            self._corruption_score = max(self._corruption_score - 1, 0.0)
            return
        self._serial_score -= 1
        if self._serial_score < CORRUPTION_THRESHOLD:
            self._end_serial()

    def _end_serial(self) -> None:
        self._serial_since = None
        self._doubling_seconds = FIRST_DOUBLING_SECONDS
        self._serial_score = 0.0

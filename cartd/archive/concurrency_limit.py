"""Adaptive limit of parallel requests to the archive (AIMD).

Strategy: Pacifica's own archive interface, run with threads, has one file handle for all of them:
parallel requests get each other's bytes.  A corrupt file now and then is normal for any archive.
But when several corrupt files come in a short time, and not at limit 1, files are fetched one at a
time; the limit then doubles at regular intervals.  Another corrupt file meanwhile resets the limit
to 1 and doubles the interval.  A file that is corrupt twice in the same way is corrupt in the
archive: its effect on the limit is undone.

With threads or without, that archive keeps no connection open while it has ten, and new connections
cost more time than more parallel requests save.  So each connection that an archive closes after
its response lowers the limit by one, down to a minimum; many reusable ones raise it by one.
"""

from __future__ import annotations

from collections.abc import Callable

CORRUPTION_THRESHOLD = 2.0
"""Score at which corrupt files are attributed to parallel requests."""
SCORE_DECAY = 0.9
"""Factor of the score for each intact file."""
MIN_LIMIT = 8
"""Lower bound of the limit when the archive closes connections.  Pacifica keeps this many open."""
INCREASE = 1 / 256
"""Additive increase for each response whose connection is reusable."""
FIRST_DOUBLING_SECONDS = 5.0
MAX_DOUBLING_SECONDS = 300.0
"""Seconds after which the limit doubles."""


class AdaptiveLimit:
    """The limit of parallel requests, at most ``maximum``, adapted to the outcome of requests."""

    def __init__(self, maximum: int, now: Callable[[], float]) -> None:
        self._maximum = maximum
        self._minimum = min(MIN_LIMIT, maximum)
        self._limit = float(maximum)
        """The limit by reusable connections alone."""
        self._now = now
        self._corruption_score = 0.0
        self._serial_since: float | None = None
        self._serial_score = 0.0
        """The score for which files are fetched one at a time."""
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
        """A response has come; its connection is reusable, or closed by the archive."""
        if reusable:
            self._limit = min(self._limit + INCREASE, self._maximum)
        else:
            self._limit = max(self._limit - 1, self._minimum)

    def record_intact_file(self) -> None:
        """A file has come with the declared bytes."""
        self._corruption_score *= SCORE_DECAY

    def record_corrupt_file(self) -> bool:
        """A file has come with other bytes than declared, for the first time.

        Return whether that was counted as an effect of parallel requests.
        """
        if self.current() == 1:
            return False  # no other request ran
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
        """A file that was counted is corrupt in the same way again: undo its effect."""
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

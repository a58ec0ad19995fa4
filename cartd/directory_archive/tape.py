"""A simulated tape library: every file is on tape until it has been recalled."""

from __future__ import annotations

import math

from twisted.internet.interfaces import IReactorTime


class TapeLibrary:
    """Remembers in memory which files were recalled and when."""

    def __init__(self, clock: IReactorTime, delay: float, rate: float | None = None) -> None:
        """``delay``: seconds from a recall until the file is on disk.

        ``rate``: files per second that its only drive reads; None: unlimited.
        """
        self._clock = clock
        self._delay = delay
        self._read_seconds = 0.0 if rate is None else 1.0 / rate
        self._last = -math.inf
        """When the drive will have read the file that was recalled last."""
        self._ready: dict[str, float] = {}

    def on_disk(self, archive_id: str) -> bool:
        ready = self._ready.get(archive_id)
        return ready is not None and ready <= self._clock.seconds()

    def seconds_until_on_disk(self, archive_id: str) -> float:
        """Return the seconds until the file is on disk, if it is recalled by now."""
        ready = self._ready.get(archive_id, self._next())
        return max(0.0, ready - self._clock.seconds())

    def recall(self, archive_id: str) -> None:
        """Start the recall of the file; a repeated call changes nothing."""
        if archive_id not in self._ready:
            self._last = self._ready[archive_id] = self._next()

    def _next(self) -> float:
        return max(self._clock.seconds() + self._delay, self._last + self._read_seconds)

    def forget(self, archive_id: str) -> None:
        """Put the id back on tape, after a write, a move or a deletion."""
        self._ready.pop(archive_id, None)

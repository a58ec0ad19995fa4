"""When to poll each file of a cart that is on tape: exponential backoff per file.

A cart may have a million such files, all of them waiting for days.  So each file takes nine bytes
in arrays, and no object: one for the number of polls, four for the time when it was announced, and
four for its position in the list of those due in the same second (a calendar queue).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from heapq import heappop, heappush

INITIAL_WAIT = 1.0
MAX_WAIT = 600.0
"""Seconds between two polls of a file: they double from the first wait to the maximum."""
MAX_RETRY_AFTER = 3600.0
"""Maximum seconds of an archive's Retry-After that are honoured."""

_MAX_POLLS = 254


class RecallQueue:
    """The files on tape of a cart with ``files_total`` files; all times are of one clock."""

    def __init__(self, files_total: int) -> None:
        self._files_total = files_total
        self._marks = bytearray()
        """By position: 0 for a file that never was on tape, else 1 plus the number of polls."""
        self._announced = array("I")
        """By position: the second when it was announced."""
        self._due: dict[int, array[int]] = {}
        """By second: the positions to poll then."""
        self._seconds: list[int] = []
        """A heap of the keys of ``_due``."""
        self.remaining = 0
        """How many files have not been recalled yet."""

    def mark(self, position: int) -> None:
        """Mark the file as on tape; call this before the first :meth:`add`."""
        if not self._marks:
            self._marks = bytearray(self._files_total)
            self._announced = array("I", bytes(4 * self._files_total))
        if not self._marks[position]:
            self._marks[position] = 1
            self.remaining += 1

    def unmark(self, positions: Iterable[int]) -> None:
        """Unmark files that need no recall: they were found on the volume."""
        for position in positions:
            if position in self:
                self._marks[position] = 0
                self.remaining -= 1

    def __contains__(self, position: int) -> bool:
        """Whether the file was on tape at the first query, even if it has been recalled since.

        Such a file is fetched by its poll, never together with the files on disk.
        """
        return bool(self._marks) and self._marks[position] > 0

    def done(self, number: int = 1) -> None:
        """Count ``number`` files as recalled or failed: they need no more polls."""
        self.remaining -= number

    def record_announced(self, position: int, now: float) -> None:
        self._announced[position] = int(now)

    def since_announced(self, position: int, now: float) -> float:
        return now - self._announced[position]

    def add(self, position: int, now: float, retry_after: float | None = None) -> float:
        """Schedule the next poll of the file; return its time.

        ``retry_after``: seconds that the archive asks to wait, if any.
        """
        polls = self._marks[position] - 1
        wait = min(INITIAL_WAIT * 2.0**polls, MAX_WAIT)
        wait = max(wait, min(retry_after or 0.0, MAX_RETRY_AFTER))
        self._marks[position] = min(polls + 1, _MAX_POLLS) + 1
        second = math.ceil(now + wait)
        if second not in self._due:
            self._due[second] = array("I")
            heappush(self._seconds, second)
        self._due[second].append(position)
        return float(second)

    def next_due(self) -> float | None:
        """Return the time of the next poll; None if none is scheduled."""
        return float(self._seconds[0]) if self._seconds else None

    def pop_due(self, now: float, limit: int) -> list[int]:
        """Remove and return up to ``limit`` due positions, the earliest due, in ascending order."""
        positions: list[int] = []
        while self._seconds and self._seconds[0] <= now and len(positions) < limit:
            due = self._due[self._seconds[0]]
            number = min(limit - len(positions), len(due))
            # From the end, which is cheap: all of them are due.
            positions += due[len(due) - number :]
            del due[len(due) - number :]
            if not due:
                del self._due[heappop(self._seconds)]
        return sorted(positions)

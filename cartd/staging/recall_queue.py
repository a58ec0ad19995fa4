"""When to ask for each file of a cart that is on tape: exponential backoff, file by file.

A cart may have a million such files, all of them waiting for days.  So of each there are nine bytes
in arrays, and no object: a byte that says how often it was polled, four for when it was announced,
and four for its place among those that are due in the same second (a calendar queue).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from heapq import heappop, heappush

INITIAL_WAIT = 1.0
MAX_WAIT = 600.0
"""Seconds between two polls of one file: they double from the first to the longest."""
MAX_RETRY_AFTER = 3600.0
"""Seconds of an archive's Retry-After that are honoured."""

_MAX_POLLS = 254


class RecallQueue:
    """The files at some positions of a cart of ``files_total``; times are those of one clock."""

    def __init__(self, files_total: int) -> None:
        self._files_total = files_total
        self._marks = bytearray()
        """By position: 0 for a file that never was on tape, else 1 and the number of its polls."""
        self._announced = array("I")
        """By position: the second in which it was announced."""
        self._due: dict[int, array[int]] = {}
        """By second: the positions to poll in it."""
        self._seconds: list[int] = []
        """A heap of the keys of that."""
        self.remaining = 0
        """How many files have not come yet."""

    def mark(self, position: int) -> None:
        """The file is on tape; to be marked before the first is added."""
        if not self._marks:
            self._marks = bytearray(self._files_total)
            self._announced = array("I", bytes(4 * self._files_total))
        if not self._marks[position]:
            self._marks[position] = 1
            self.remaining += 1

    def unmark(self, positions: Iterable[int]) -> None:
        """The files need not be recalled: they were found on the volume."""
        for position in positions:
            if position in self:
                self._marks[position] = 0
                self.remaining -= 1

    def __contains__(self, position: int) -> bool:
        """Whether the file was on tape when the archive was asked first, though it may have come.

        Who fetches what is on disk has to leave it alone, whenever that is found out.
        """
        return bool(self._marks) and self._marks[position] > 0

    def done(self, number: int = 1) -> None:
        """So many files need no more polls."""
        self.remaining -= number

    def record_announced(self, position: int, now: float) -> None:
        self._announced[position] = int(now)

    def since_announced(self, position: int, now: float) -> float:
        return now - self._announced[position]

    def add(self, position: int, now: float, retry_after: float | None = None) -> float:
        """Have the file polled again after its next wait; when that is.

        ``retry_after`` are the seconds that the archive wants it to be left alone, if it said.
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
        """When the next file is to be polled; none if none waits for that."""
        return float(self._seconds[0]) if self._seconds else None

    def pop_due(self, now: float, limit: int) -> list[int]:
        """Up to ``limit`` positions of files that are due, in their order, those due first
        first."""
        positions: list[int] = []
        while self._seconds and self._seconds[0] <= now and len(positions) < limit:
            due = self._due[self._seconds[0]]
            number = min(limit - len(positions), len(due))
            # From the end, where it costs nothing: all of them are due.
            positions += due[len(due) - number :]
            del due[len(due) - number :]
            if not due:
                del self._due[heappop(self._seconds)]
        return sorted(positions)

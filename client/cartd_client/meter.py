"""Progress and rate of a download or a verification, for a function of the caller."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from cartd_client.model import Progress

OnProgress = Callable[[Progress], None]
INTERVAL = 0.1
"""Seconds between two calls."""
RATE_SECONDS = 5.0
"""Time over which the rate is measured."""


class Meter:
    """Calls the function for the progress, not too often."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._recent: deque[tuple[float, int]] = deque()
        self._next = 0.0
        self._total: int | None = None
        self._files: int | None = None

    def start(self, done: int, total: int | None, files: int | None) -> None:
        """Begin with ``done`` bytes of ``total``, and the number of all files."""
        self._total, self._files = total, files
        self._recent.append((time.monotonic(), done))

    def update(self, done: int, files: int, *, is_last: bool = False) -> None:
        """Note how far it is; calls the function if the last call was long enough ago."""
        now = time.monotonic()
        if self._on_progress is None or (now < self._next and not is_last):
            return
        self._next = now + INTERVAL
        self._recent.append((now, done))
        while len(self._recent) > 2 and self._recent[0][0] < now - RATE_SECONDS:
            self._recent.popleft()
        since, before = self._recent[0]
        rate = (done - before) / (now - since) if now > since else None
        self._on_progress(Progress(done, self._total, files, self._files, rate))

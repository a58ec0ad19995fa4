"""Log lines for an outage of the database: one at its start, one at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from cartd.errors import DatabaseUnavailable

LOG_INTERVAL = 60.0
"""Minimum seconds between two log lines with a cause."""

log = Logger()


class OutageLog:
    """Logs an outage once, for all callers that fail because of it.

    Reads and writes are tracked separately: a full disk or a read-only server stops only writes.
    The outage is over when the last read and the last write have succeeded.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failing: set[str] = set()
        self._reason = ""
        """The cause that was logged last."""
        self._logged_at: float | None = None
        self._is_logged = False
        """Whether the end of this outage has to be logged."""

    @contextmanager
    def track(self, kind: str) -> Iterator[None]:
        """Track the outcome of the block; ``kind`` is ``read`` or ``write``."""
        try:
            yield
        except DatabaseUnavailable as error:
            self._failed(kind, error)
            raise
        self._worked(kind)

    def _failed(self, kind: str, error: DatabaseUnavailable) -> None:
        is_new = not self._failing
        self._failing.add(kind)
        now = self._clock.seconds()
        is_same = error.reason == self._reason
        is_recent = self._logged_at is not None and now - self._logged_at < LOG_INTERVAL
        if not (is_same and is_recent if is_new else is_same or is_recent):
            log.warn("{error}; retrying", error=error.admin_message)
            self._reason, self._logged_at, self._is_logged = error.reason, now, True

    def _worked(self, kind: str) -> None:
        if self._failing:
            self._failing.discard(kind)
            if not self._failing and self._is_logged:
                self._is_logged = False
                log.info("The database is available again")

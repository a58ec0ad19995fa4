"""What the log says of a database that cannot be used: once that, and once that it can again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from cartd.errors import DatabaseUnavailable

LOG_INTERVAL = 60.0
"""Seconds between two lines that say why, at least."""

log = Logger()


class OutageLog:
    """Whoever asks is not told by the log: all of them would say the same.

    Reading and writing are looked at apart, as a full disk or a server that has become read-only
    stops only one of them.  It is over when neither has failed last.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failing: set[str] = set()
        self._reason = ""
        """What was said last."""
        self._logged_at: float | None = None
        self._is_logged = False
        """Whether it is to be said that this outage is over."""

    @contextmanager
    def track(self, kind: str) -> Iterator[None]:
        """Note how what is done meanwhile ends; ``kind`` is ``read`` or ``write``."""
        try:
            yield
        except DatabaseUnavailable as away:
            self._failed(kind, away)
            raise
        self._worked(kind)

    def _failed(self, kind: str, away: DatabaseUnavailable) -> None:
        is_new = not self._failing
        self._failing.add(kind)
        now = self._clock.seconds()
        is_same = away.reason == self._reason
        is_recent = self._logged_at is not None and now - self._logged_at < LOG_INTERVAL
        if not (is_same and is_recent if is_new else is_same or is_recent):
            log.warn("{away}; it is tried again", away=away.admin_message)
            self._reason, self._logged_at, self._is_logged = away.reason, now, True

    def _worked(self, kind: str) -> None:
        if self._failing:
            self._failing.discard(kind)
            if not self._failing and self._is_logged:
                self._is_logged = False
                log.info("The database can be used again")

"""An outage of the database is logged once, and its end once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from cartd.errors import DatabaseUnavailable
from cartd.store.database import LOG_INTERVAL, OutageLog

UNAVAILABLE, OVER = "The database cannot be used: {}; retrying", "The database is available again"


class LoggedOutage:
    """An outage log with its clock, and the lines that it has logged."""

    def __init__(self, entries: Sequence[LogEvent]) -> None:
        self.clock = Clock()
        self._outage = OutageLog(self.clock)
        self._entries = entries
        self._seen = 0

    def fails(self, kind: str, reason: str) -> None:
        with suppress(DatabaseUnavailable), self._outage.track(kind):
            raise DatabaseUnavailable(reason)

    def works(self, kind: str) -> None:
        with self._outage.track(kind):
            pass

    def lines(self) -> list[str]:
        """Return the lines since the last call."""
        lines = [formatEvent(entry) for entry in self._entries[self._seen :]]
        self._seen += len(lines)
        return lines


@pytest.fixture
def outage() -> Iterator[LoggedOutage]:
    with capturedLogs() as entries:
        yield LoggedOutage(entries)


def test_an_outage_and_its_end_are_logged_once_for_all_callers(outage: LoggedOutage) -> None:
    for _ in range(100):
        outage.fails("read", "refused")
        outage.fails("write", "refused")
    outage.works("read")
    assert outage.lines() == [UNAVAILABLE.format("refused")]
    outage.works("write")
    outage.works("write")
    assert outage.lines() == [OVER]


def test_another_cause_is_logged_after_the_log_interval(
    outage: LoggedOutage,
) -> None:
    outage.fails("read", "refused")
    outage.fails("read", "starting up")
    outage.clock.advance(LOG_INTERVAL)
    outage.fails("read", "refused")
    outage.fails("read", "no password")
    outage.fails("read", "refused")
    assert outage.lines() == [UNAVAILABLE.format("refused"), UNAVAILABLE.format("no password")]


def test_a_query_that_fails_repeatedly_is_not_logged_each_time(
    outage: LoggedOutage,
) -> None:
    for _ in range(50):
        outage.fails("read", "corrupted page")
        outage.works("read")
    assert outage.lines() == [UNAVAILABLE.format("corrupted page"), OVER]
    outage.clock.advance(LOG_INTERVAL)
    outage.fails("read", "corrupted page")
    assert outage.lines() == [UNAVAILABLE.format("corrupted page")]


def test_successful_reads_do_not_end_an_outage_of_writes(outage: LoggedOutage) -> None:
    outage.fails("write", "disk full")
    outage.works("read")
    assert outage.lines() == [UNAVAILABLE.format("disk full")]
    outage.works("write")
    assert outage.lines() == [OVER]

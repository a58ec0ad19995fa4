"""An outage of the database in the log: said once, and once that it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from cartd.errors import DatabaseUnavailable
from cartd.store.outage_log import NEXT_LINE, OutageLog

AWAY, OVER = "The database cannot be used: {}; it is tried again", "The database can be used again"


class Told:
    """An outage log by a clock, and the lines that it has made."""

    def __init__(self, entries: Sequence[LogEvent]) -> None:
        self.clock = Clock()
        self._outage = OutageLog(self.clock)
        self._entries = entries
        self._seen = 0

    def fails(self, kind: str, reason: str) -> None:
        with suppress(DatabaseUnavailable), self._outage.told(kind):
            raise DatabaseUnavailable(reason)

    def works(self, kind: str) -> None:
        with self._outage.told(kind):
            pass

    def lines(self) -> list[str]:
        """Those that have come since it was last asked."""
        lines = [formatEvent(entry) for entry in self._entries[self._seen :]]
        self._seen += len(lines)
        return lines


@pytest.fixture
def told() -> Iterator[Told]:
    with capturedLogs() as entries:
        yield Told(entries)


def test_an_outage_is_said_once_and_its_end_once_whoever_notices_it(told: Told) -> None:
    for _ in range(100):
        told.fails("read", "refused")
        told.fails("write", "refused")
    told.works("read")
    assert told.lines() == [AWAY.format("refused")]
    told.works("write")
    told.works("write")
    assert told.lines() == [OVER]


def test_another_cause_during_an_outage_is_said_a_minute_later_at_the_earliest(told: Told) -> None:
    told.fails("read", "refused")
    told.fails("read", "starting up")
    told.clock.advance(NEXT_LINE)
    told.fails("read", "refused")
    told.fails("read", "no password")
    told.fails("read", "refused")
    assert told.lines() == [AWAY.format("refused"), AWAY.format("no password")]


def test_one_query_that_fails_each_time_among_others_is_not_said_each_time(told: Told) -> None:
    for _ in range(50):
        told.fails("read", "corrupted page")
        told.works("read")
    assert told.lines() == [AWAY.format("corrupted page"), OVER]
    told.clock.advance(NEXT_LINE)
    told.fails("read", "corrupted page")
    assert told.lines() == [AWAY.format("corrupted page")]


def test_what_is_only_read_does_not_end_an_outage_of_writing(told: Told) -> None:
    told.fails("write", "disk full")
    told.works("read")
    assert told.lines() == [AWAY.format("disk full")]
    told.works("write")
    assert told.lines() == [OVER]

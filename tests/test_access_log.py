"""The log of requests: which lines make one entry, and that none is lost."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from cartd.server.access_log import AccessLog


def test_the_lines_of_one_turn_are_one_entry_and_those_of_the_next_another() -> None:
    clock = Clock()
    log = AccessLog(clock)
    with capturedLogs() as entries:
        log.write("first {}\n")
        log.write("second\n")
        clock.advance(0)
        log.write("third\n")
        clock.advance(0)
    assert list(map(formatEvent, entries)) == ["first {}\nsecond", "third"]
    assert clock.getDelayedCalls() == []


def test_what_was_written_before_the_end_is_kept() -> None:
    clock = Clock()
    log = AccessLog(clock)
    with capturedLogs() as entries:
        log.write("last\n")
        log.close()
        log.close()
    assert list(map(formatEvent, entries)) == ["last"]
    assert clock.getDelayedCalls() == []

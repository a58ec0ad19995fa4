"""What happened in the last day."""

from __future__ import annotations

from twisted.internet.task import Clock

from cartd.status.overview import DAY, SLOT, LastDay


def test_what_is_older_than_a_day_is_forgotten() -> None:
    clock = Clock()
    day = LastDay(clock.seconds)
    assert day.totals() == (0, 0)
    day.record(100)
    clock.advance(SLOT)
    day.record(10)
    day.record(1)
    assert day.totals() == (3, 111)
    clock.advance(DAY)
    assert day.totals() == (2, 11)
    clock.advance(DAY + SLOT)
    assert day.totals() == (0, 0)


def test_a_busy_day_takes_little_memory() -> None:
    clock = Clock()
    day = LastDay(clock.seconds)
    for _ in range(2000):
        day.record(1)
        clock.advance(100)
    assert len(day._slots) <= DAY / SLOT + 2

"""Pins that keep a cart's files, and access times that are kept until they are written."""

from __future__ import annotations

from contextlib import ExitStack

from cartd.carts.download import AccessTimes, Pins


def test_a_cart_is_pinned_until_its_last_pin_is_released() -> None:
    pins = Pins()
    with pins.pin(7):
        with pins.pin(7):
            assert pins.count() == 2
        assert pins.is_pinned(7)
    assert not pins.is_pinned(7)
    assert pins.count() == 0


def test_a_waiter_is_notified_when_the_last_pin_is_released() -> None:
    pins = Pins()
    notified: list[object] = []
    with pins.pin(7), pins.pin(8):
        pins.when_unpinned(7).addCallback(notified.append)
        assert notified == []
    assert notified == [None]
    pins.when_unpinned(7).addCallback(notified.append)
    assert notified == [None, None]


def test_a_cancelled_waiter_is_not_notified() -> None:
    pins = Pins()
    notified: list[object] = []
    with pins.pin(7):
        waiting = pins.when_unpinned(7)
        waiting.addBoth(lambda result: notified.append(type(result.value).__name__))
        waiting.cancel()
    assert notified == ["CancelledError"]


def test_a_notified_waiter_may_cancel_other_waiters() -> None:
    """As at a stop, which waits for the last download and then cancels what waits for it."""
    pins = Pins()
    notified: list[object] = []
    with pins.pin(7):
        first, second = pins.when_unpinned(7), pins.when_unpinned(7)
        first.addCallback(lambda _: second.cancel())
        second.addBoth(lambda result: notified.append(type(result.value).__name__))
    assert notified == ["CancelledError"]
    assert first.result is None


def test_a_waiter_keeps_waiting_if_the_cart_is_pinned_again() -> None:
    pins = Pins()
    notified: list[object] = []
    held = ExitStack()
    with pins.pin(7):
        pins.when_unpinned(7).addCallback(lambda _: held.enter_context(pins.pin(7)) and None)
        pins.when_unpinned(7).addCallback(notified.append)
    assert notified == []
    held.close()
    assert notified == [None]


def test_the_later_of_remembered_and_stored_time_counts() -> None:
    times = AccessTimes()
    times.record(7, 100.0)
    assert times.last(7, 50.0) == 100.0
    assert times.last(7, 150.0) == 150.0
    assert times.last(8, 50.0) == 50.0


def test_access_times_that_could_not_be_written_are_kept() -> None:
    times = AccessTimes()
    times.record(7, 100.0)
    times.record(8, 100.0)
    taken = times.drain()
    times.record(8, 200.0)
    times.restore(taken)
    assert times.drain() == {7: 100.0, 8: 200.0}
    assert times.drain() == {}

"""Pins that keep a cart's files, and uses that are remembered until they are written."""

from __future__ import annotations

from contextlib import ExitStack

from cartd.pins import Uses


def test_a_cart_is_pinned_until_its_last_pin_is_released() -> None:
    uses = Uses()
    with uses.pin(7):
        with uses.pin(7):
            assert uses.pinned() == 2
        assert uses.is_pinned(7)
    assert not uses.is_pinned(7)
    assert uses.pinned() == 0


def test_who_waits_for_a_cart_is_told_when_the_last_pin_goes() -> None:
    uses = Uses()
    told: list[object] = []
    with uses.pin(7), uses.pin(8):
        uses.unpinned(7).addCallback(told.append)
        assert told == []
    assert told == [None]
    uses.unpinned(7).addCallback(told.append)
    assert told == [None, None]


def test_who_no_longer_waits_is_not_told() -> None:
    uses = Uses()
    told: list[object] = []
    with uses.pin(7):
        waiting = uses.unpinned(7)
        waiting.addBoth(lambda result: told.append(type(result.value).__name__))
        waiting.cancel()
    assert told == ["CancelledError"]


def test_who_is_told_may_end_the_waiting_of_others() -> None:
    """As a stop does, which waits for the last download and then gives up what waits for it."""
    uses = Uses()
    told: list[object] = []
    with uses.pin(7):
        first, second = uses.unpinned(7), uses.unpinned(7)
        first.addCallback(lambda _: second.cancel())
        second.addBoth(lambda result: told.append(type(result.value).__name__))
    assert told == ["CancelledError"]
    assert first.result is None


def test_who_waits_goes_on_waiting_if_the_cart_is_pinned_again_meanwhile() -> None:
    uses = Uses()
    told: list[object] = []
    pins = ExitStack()
    with uses.pin(7):
        uses.unpinned(7).addCallback(lambda _: pins.enter_context(uses.pin(7)) and None)
        uses.unpinned(7).addCallback(told.append)
    assert told == []
    pins.close()
    assert told == [None]


def test_the_later_of_remembered_and_recorded_use_counts() -> None:
    uses = Uses()
    uses.note(7, 100.0)
    assert uses.last(7, 50.0) == 100.0
    assert uses.last(7, 150.0) == 150.0
    assert uses.last(8, 50.0) == 50.0


def test_uses_that_could_not_be_written_are_remembered_with_what_came_since() -> None:
    uses = Uses()
    uses.note(7, 100.0)
    uses.note(8, 100.0)
    taken = uses.take()
    uses.note(8, 200.0)
    uses.put_back(taken)
    assert uses.take() == {7: 100.0, 8: 200.0}
    assert uses.take() == {}

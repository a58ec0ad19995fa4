"""Questions without an answer: broken off when the database answers nothing else either."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.errors import Unavailable
from cartd.store.watchdog import GRACE, PATIENCE, Unanswered

TIMEOUT = 20.0
ANSWER_WITHIN = TIMEOUT + GRACE


class Asked:
    """Questions to a database, and the new connections that it is asked for."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.connecting: list[Deferred[object]] = []
        self.broken: list[str] = []
        self.servers: list[str] = []
        """That of each of these connections."""
        self.unanswered = Unanswered(self.clock, self.connect, TIMEOUT)

    async def connect(self, server: str) -> object:
        self.servers.append(server)
        self.connecting.append(Deferred())
        return await self.connecting[-1]

    def question(self, name: str, server: str = "only") -> Deferred[None]:
        return self.unanswered.watch(Deferred(), lambda: self.broken.append(name), server)


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.unanswered.stop()
    assert not asked.clock.getDelayedCalls()


def test_what_is_answered_soon_asks_for_no_connection(asked: Asked) -> None:
    for _ in range(100):
        answer = asked.question("quick")
        asked.clock.advance(PATIENCE / 3)
        answer.callback(None)
    asked.clock.advance(PATIENCE)
    assert asked.connecting == []
    assert not asked.clock.getDelayedCalls()


@pytest.mark.parametrize("fails", [False, True], ids=["opened", "refused"])
def test_what_takes_long_is_left_alone_while_new_connections_are_answered(
    asked: Asked, fails: bool
) -> None:
    asked.question("long")
    for number in range(5):
        asked.clock.advance(PATIENCE)
        assert len(asked.connecting) == number + 1
        if fails:
            asked.connecting[-1].errback(Unavailable("too many connections"))
        else:
            asked.connecting[-1].callback(None)
    assert asked.broken == []


def test_what_takes_long_is_broken_off_when_a_new_connection_is_not_answered(asked: Asked) -> None:
    asked.question("first")
    asked.clock.advance(PATIENCE / 2)
    second = asked.question("second")
    asked.clock.advance(PATIENCE / 2)
    asked.clock.advance(ANSWER_WITHIN)
    assert asked.broken == ["first"]
    second.callback(None)
    asked.clock.advance(PATIENCE)
    asked.clock.advance(ANSWER_WITHIN)
    assert asked.broken == ["first", "first"]


def test_a_connection_that_times_out_by_itself_is_no_answer(asked: Asked) -> None:
    asked.question("first")
    asked.clock.advance(PATIENCE)
    asked.clock.advance(TIMEOUT)
    asked.connecting[0].errback(TimeoutError())
    assert asked.broken == ["first"]


def test_a_connection_may_take_as_long_as_its_own_time_out(asked: Asked) -> None:
    asked.question("slow")
    asked.clock.advance(PATIENCE)
    asked.clock.advance(TIMEOUT)
    asked.connecting[0].callback(None)
    asked.clock.advance(GRACE)
    assert asked.broken == []


def test_the_very_server_is_asked_that_owes_the_answer(asked: Asked) -> None:
    for name, server in (("a", "old"), ("b", "new"), ("c", "new")):
        asked.question(name, server)
    asked.clock.advance(PATIENCE)
    asked.question("d", "idle")
    assert sorted(asked.servers) == ["new", "old"]
    asked.connecting[asked.servers.index("new")].callback(None)
    asked.clock.advance(ANSWER_WITHIN)
    assert asked.broken == ["a"]


def test_the_stop_ends_the_asking_too(asked: Asked) -> None:
    asked.question("long")
    asked.clock.advance(PATIENCE)
    asked.unanswered.stop()
    assert asked.connecting[0].called

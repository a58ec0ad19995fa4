"""Queries without an answer are aborted when a new connection is not answered either."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.errors import Unavailable
from cartd.store.connections import PROBE_AFTER, PROBE_GRACE, Watchdog

TIMEOUT = 20.0
PROBE_TIMEOUT = TIMEOUT + PROBE_GRACE


class WatchedQueries:
    """Queries, and the probe connections that the watchdog opens."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.connecting: list[Deferred[object]] = []
        self.aborted: list[str] = []
        self.servers: list[str] = []
        """The server of each probe."""
        self.watchdog = Watchdog(self.clock, self.connect, TIMEOUT)

    async def connect(self, server: str) -> object:
        self.servers.append(server)
        self.connecting.append(Deferred())
        return await self.connecting[-1]

    def query(self, name: str, server: str = "only") -> Deferred[None]:
        return self.watchdog.watch(Deferred(), lambda: self.aborted.append(name), server)


@pytest.fixture
def watched() -> Iterator[WatchedQueries]:
    watched = WatchedQueries()
    yield watched
    watched.watchdog.stop()
    assert not watched.clock.getDelayedCalls()


def test_fast_queries_open_no_probe_connection(watched: WatchedQueries) -> None:
    for _ in range(100):
        answer = watched.query("quick")
        watched.clock.advance(PROBE_AFTER / 3)
        answer.callback(None)
    watched.clock.advance(PROBE_AFTER)
    assert watched.connecting == []
    assert not watched.clock.getDelayedCalls()


@pytest.mark.parametrize("fails", [False, True], ids=["opened", "refused"])
def test_a_slow_query_continues_while_probes_are_answered(
    watched: WatchedQueries, fails: bool
) -> None:
    watched.query("long")
    for number in range(5):
        watched.clock.advance(PROBE_AFTER)
        assert len(watched.connecting) == number + 1
        if fails:
            watched.connecting[-1].errback(Unavailable("too many connections"))
        else:
            watched.connecting[-1].callback(None)
    assert watched.aborted == []


def test_a_slow_query_is_aborted_when_a_probe_is_not_answered(
    watched: WatchedQueries,
) -> None:
    watched.query("first")
    watched.clock.advance(PROBE_AFTER / 2)
    second = watched.query("second")
    watched.clock.advance(PROBE_AFTER / 2)
    watched.clock.advance(PROBE_TIMEOUT)
    assert watched.aborted == ["first"]
    second.callback(None)
    watched.clock.advance(PROBE_AFTER)
    watched.clock.advance(PROBE_TIMEOUT)
    assert watched.aborted == ["first", "first"]


def test_a_probe_that_times_out_by_itself_aborts_the_query(watched: WatchedQueries) -> None:
    watched.query("first")
    watched.clock.advance(PROBE_AFTER)
    watched.clock.advance(TIMEOUT)
    watched.connecting[0].errback(TimeoutError())
    assert watched.aborted == ["first"]


def test_a_probe_may_take_as_long_as_its_connect_timeout(watched: WatchedQueries) -> None:
    watched.query("slow")
    watched.clock.advance(PROBE_AFTER)
    watched.clock.advance(TIMEOUT)
    watched.connecting[0].callback(None)
    watched.clock.advance(PROBE_GRACE)
    assert watched.aborted == []


def test_the_probe_goes_to_the_server_of_the_slow_query(watched: WatchedQueries) -> None:
    for name, server in (("a", "old"), ("b", "new"), ("c", "new")):
        watched.query(name, server)
    watched.clock.advance(PROBE_AFTER)
    watched.query("d", "idle")
    assert sorted(watched.servers) == ["new", "old"]
    watched.connecting[watched.servers.index("new")].callback(None)
    watched.clock.advance(PROBE_TIMEOUT)
    assert watched.aborted == ["a"]


def test_stopping_cancels_running_probes(watched: WatchedQueries) -> None:
    watched.query("long")
    watched.clock.advance(PROBE_AFTER)
    watched.watchdog.stop()
    assert watched.connecting[0].called

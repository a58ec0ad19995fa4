"""Abort queries that a hanging database does not answer while the connection looks intact.

Strategy: a query on a stopped server, or on a network that drops packets, looks the same as a
slow one: deleting a cart of a million files is one statement.  So when a query is slow, a probe
opens a new connection to the same server.  While probes are answered, even by an error, the query
continues; otherwise its connection is aborted, and the driver fails as if the server had closed it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as ProbeTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

PROBE_AFTER = 10.0
"""Seconds after which a running query is slow."""
PROBE_GRACE = 5.0
"""Seconds that a probe may take beyond the connect timeout."""

T = TypeVar("T")


class _Query(NamedTuple):
    started: float
    abort: Callable[[], None]
    server: Hashable


class Watchdog:
    """Watches running queries."""

    def __init__(
        self,
        clock: IReactorTime,
        probe: Callable[[Any], Awaitable[object]],
        connect_timeout: float,
    ) -> None:
        """``probe`` connects to a server, and raises ``TimeoutError`` if there is no answer.

        A probe that takes longer than ``connect_timeout`` counts as not answered.
        """
        self._clock = clock
        self._probe = probe
        self._probe_timeout = connect_timeout + PROBE_GRACE
        self._running: dict[object, _Query] = {}
        self._next_check: IDelayedCall | None = None
        self._probes: set[Deferred[Any]] = set()

    def watch(
        self, answer: Deferred[T], abort: Callable[[], None], server: Hashable
    ) -> Deferred[T]:
        """Watch a query until ``answer`` fires; ``abort`` may be called several times before."""
        query = object()
        self._running[query] = _Query(self._clock.seconds(), abort, server)

        def finished(outcome: T) -> T:
            del self._running[query]
            return outcome

        answer.addBoth(finished)
        self._check_after(PROBE_AFTER)
        return answer

    def stop(self) -> None:
        """Stop watching; no query may be running."""
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None
        for probing in list(self._probes):
            probing.cancel()

    def _check_after(self, seconds: float) -> None:
        if self._next_check is None and not self._probes and self._running:
            self._next_check = self._clock.callLater(seconds, self._check)

    def _check(self) -> None:
        self._next_check = None
        started_before = self._clock.seconds() - PROBE_AFTER
        servers = {query.server for query in self._slow(started_before)}
        if not servers:
            # A query is found at most this long after it became slow.
            self._check_after(PROBE_AFTER / 2)
            return
        probes = {server: Deferred.fromCoroutine(self._probe_server(server)) for server in servers}
        self._probes.update(probes.values())
        for server, probing in probes.items():
            probing.addTimeout(self._probe_timeout, self._clock)
            probing.addBoth(self._probed, probing, server, started_before)

    async def _probe_server(self, server: Hashable) -> None:
        await self._probe(server)

    def _probed(
        self, outcome: object, probing: Deferred[Any], server: Hashable, started_before: float
    ) -> None:
        self._probes.discard(probing)
        if isinstance(outcome, Failure) and outcome.check(TimeoutError, ProbeTimeout):
            for query in self._slow(started_before):
                if query.server == server:
                    query.abort()
        self._check_after(PROBE_AFTER)

    def _slow(self, started_before: float) -> list[_Query]:
        return [query for query in self._running.values() if query.started <= started_before]

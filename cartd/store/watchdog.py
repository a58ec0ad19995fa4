"""A database that says nothing any more, while its connections look whole.

Strategy: a server that is stopped, or a network that swallows what it is given, leaves a query
without an answer, which looks just like one that takes long: a cart of a million files is deleted
by one statement.  So when a query has taken long, a new connection is opened to the very server
that it was probes of.  As long as that answers, well or not, the query is left alone; else its
connection is broken, and the driver fails as if the server had gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as ProbeTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

PROBE_AFTER = 10.0
"""Seconds after which a query has taken long."""
PROBE_GRACE = 5.0
"""Seconds that a new connection may take beyond its own time-out."""

T = TypeVar("T")


class _Query(NamedTuple):
    started: float
    abort: Callable[[], None]
    server: Hashable


class Watchdog:
    """Watches the questions that are under way."""

    def __init__(
        self,
        clock: IReactorTime,
        probe: Callable[[Any], Awaitable[object]],
        connect_timeout: float,
    ) -> None:
        """``probe`` connects anew to a server, and raises ``TimeoutError`` if that says nothing.

        It takes ``connect_timeout`` seconds at most, or has not been finished either.
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
        """``abort`` may be called, and more than once, until ``answer`` has fired."""
        query = object()
        self._running[query] = _Query(self._clock.seconds(), abort, server)

        def finished(outcome: T) -> T:
            del self._running[query]
            return outcome

        answer.addBoth(finished)
        self._check_after(PROBE_AFTER)
        return answer

    def stop(self) -> None:
        """Nothing is under way any more."""
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
            # Looked for no later than the oldest becomes old.
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

"""A database that says nothing any more, while its connections look whole.

Strategy: a server that is stopped, or a network that swallows what it is given, leaves a question
without an answer, which looks just like one that takes long: a cart of a million files is deleted
by one statement.  So when a question has taken long, a new connection is opened to the very server
that it was asked of.  As long as that answers, well or not, the question is left alone; else its
connection is broken, and the driver fails as if the server had gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as GivenUp
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

PATIENCE = 10.0
"""Seconds after which a question has taken long."""
GRACE = 5.0
"""Seconds that a new connection may take beyond its own time-out."""

T = TypeVar("T")


class _Question(NamedTuple):
    since: float
    break_off: Callable[[], None]
    server: Hashable


class Unanswered:
    """Watches the questions that are under way."""

    def __init__(
        self,
        clock: IReactorTime,
        ask: Callable[[Any], Awaitable[object]],
        connect_timeout: float,
    ) -> None:
        """``ask`` connects anew to a server, and raises ``TimeoutError`` if that says nothing.

        It takes ``connect_timeout`` seconds at most, or has not been answered either.
        """
        self._clock = clock
        self._ask = ask
        self._answer_within = connect_timeout + GRACE
        self._open: dict[object, _Question] = {}
        self._next_look: IDelayedCall | None = None
        self._asking: set[Deferred[Any]] = set()

    def watch(
        self, answer: Deferred[T], break_off: Callable[[], None], server: Hashable
    ) -> Deferred[T]:
        """``break_off`` may be called, and more than once, until ``answer`` has fired."""
        question = object()
        self._open[question] = _Question(self._clock.seconds(), break_off, server)

        def answered(outcome: T) -> T:
            del self._open[question]
            return outcome

        answer.addBoth(answered)
        self._look_after(PATIENCE)
        return answer

    def stop(self) -> None:
        """Nothing is under way any more."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        for asking in list(self._asking):
            asking.cancel()

    def _look_after(self, seconds: float) -> None:
        if self._next_look is None and not self._asking and self._open:
            self._next_look = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._next_look = None
        asked_before = self._clock.seconds() - PATIENCE
        servers = {question.server for question in self._old(asked_before)}
        if not servers:
            # Looked for no later than the oldest becomes old.
            self._look_after(PATIENCE / 2)
            return
        asked = {server: Deferred.fromCoroutine(self._asked(server)) for server in servers}
        self._asking.update(asked.values())
        for server, asking in asked.items():
            asking.addTimeout(self._answer_within, self._clock)
            asking.addBoth(self._heard, asking, server, asked_before)

    async def _asked(self, server: Hashable) -> None:
        await self._ask(server)

    def _heard(
        self, outcome: object, asking: Deferred[Any], server: Hashable, asked_before: float
    ) -> None:
        self._asking.discard(asking)
        if isinstance(outcome, Failure) and outcome.check(TimeoutError, GivenUp):
            for question in self._old(asked_before):
                if question.server == server:
                    question.break_off()
        self._look_after(PATIENCE)

    def _old(self, asked_before: float) -> list[_Question]:
        return [question for question in self._open.values() if question.since <= asked_before]

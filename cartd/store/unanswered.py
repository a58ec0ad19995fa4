"""A database that says nothing any more, while its connections look whole.

Strategy: a server that is stopped, or a network that swallows what it is given, leaves a question
without an answer, which looks just like one that takes long: a cart of a million files is deleted
by one statement.  So when a question has taken long, a new connection is opened.  As long as the
database answers that, well or not, the question is left alone; else its connection is broken, and
the driver fails as if the server had gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

PATIENCE = 10.0
"""Seconds after which a question has taken long."""
ANSWER_WITHIN = 5.0
"""Seconds that a new connection may take."""

T = TypeVar("T")


class Unanswered:
    """Watches the questions that are under way; ``ask`` opens a new connection."""

    def __init__(self, clock: IReactorTime, ask: Callable[[], Awaitable[object]]) -> None:
        self._clock = clock
        self._ask = ask
        self._open: dict[object, tuple[float, Callable[[], None]]] = {}
        """When each was asked, and what breaks its connection."""
        self._next_look: IDelayedCall | None = None
        self._asking: Deferred[Any] | None = None

    def watch(self, answer: Deferred[T], break_off: Callable[[], None]) -> Deferred[T]:
        """``break_off`` may be called, and more than once, until ``answer`` has fired."""
        question = object()
        self._open[question] = self._clock.seconds(), break_off

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
        if self._asking is not None:
            self._asking.cancel()

    def _look_after(self, seconds: float) -> None:
        if self._next_look is None and self._asking is None and self._open:
            self._next_look = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._next_look = None
        old = self._old(self._clock.seconds() - PATIENCE)
        if not old:
            # Looked for no later than the oldest becomes old.
            self._look_after(PATIENCE / 2)
            return
        self._asking = asking = Deferred.fromCoroutine(self._asked())
        asking.addTimeout(ANSWER_WITHIN, self._clock)
        asking.addBoth(self._heard, self._clock.seconds() - PATIENCE)

    async def _asked(self) -> None:
        await self._ask()

    def _heard(self, outcome: object, asked_before: float) -> None:
        self._asking = None
        if isinstance(outcome, Failure) and outcome.check(TimeoutError):
            for break_off in self._old(asked_before):
                break_off()
        self._look_after(PATIENCE)

    def _old(self, asked_before: float) -> list[Callable[[], None]]:
        return [break_off for since, break_off in self._open.values() if since <= asked_before]

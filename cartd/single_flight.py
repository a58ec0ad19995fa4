"""Single flight: concurrent callers share one execution and its result."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Starts at once.

    Cancelling one result does not affect the others; cancelling the last one cancels the execution.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._waiting: list[Deferred[T]] = []
        self._outcome: list[T | Failure] = []
        self._abandoned = False
        self._task = Deferred.fromCoroutine(start())
        self._task.addBoth(self._end)

    @property
    def in_progress(self) -> bool:
        """Whether it still runs, so that another caller may join."""
        return not self._outcome and not self._abandoned

    def result(self) -> Deferred[T]:
        """Fire with the result or the failure; the caller may cancel it."""
        waiting: Deferred[T] = Deferred(self._unsubscribe)
        self._waiting.append(waiting)
        if self._outcome:
            self._notify(self._outcome[0])
        return waiting

    def _unsubscribe(self, waiting: Deferred[T]) -> None:
        self._waiting.remove(waiting)
        if not self._waiting:
            self._abandoned = True
            self._task.cancel()

    def _end(self, outcome: T | Failure) -> None:
        self._outcome.append(outcome)
        self._notify(outcome)

    def _notify(self, outcome: T | Failure) -> None:
        while self._waiting:  # a callback may cancel the next one
            waiting = self._waiting.pop(0)
            if isinstance(outcome, Failure):
                waiting.errback(outcome)
            else:
                waiting.callback(outcome)

"""One job for all who want its result at the same time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class SharedJob(Generic[T]):
    """Begins at once.  Who leaves does not disturb the others; when the last leaves, it ends."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._waiting: list[Deferred[T]] = []
        self._outcome: list[T | Failure] = []
        self._given_up = False
        self._job = Deferred.fromCoroutine(begin())
        self._job.addBoth(self._end)

    @property
    def open(self) -> bool:
        """Whether it still is under way, for one more to join."""
        return not self._outcome and not self._given_up

    def result(self) -> Deferred[T]:
        """Its result or its failure, for one who may cancel it."""
        waiting: Deferred[T] = Deferred(self._leave)
        self._waiting.append(waiting)
        if self._outcome:
            self._tell(self._outcome[0])
        return waiting

    def _leave(self, waiting: Deferred[T]) -> None:
        self._waiting.remove(waiting)
        if not self._waiting:
            self._given_up = True
            self._job.cancel()

    def _end(self, outcome: T | Failure) -> None:
        self._outcome.append(outcome)
        self._tell(outcome)

    def _tell(self, outcome: T | Failure) -> None:
        while self._waiting:  # who is told may cancel the next
            waiting = self._waiting.pop(0)
            if isinstance(outcome, Failure):
                waiting.errback(outcome)
            else:
                waiting.callback(outcome)

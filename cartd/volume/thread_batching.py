"""Many small pieces of blocking work in few trips to a thread.

Strategy: each system call gives the interpreter away and must win it back, so a dozen threads that
place small files spend more on waking each other than on the files.  Work that comes while
enough trips are under way waits, and goes together in the next one.  How many are enough
is measured: on a quick disk two; where each piece waits long (a disk far away), more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

from cartd.threads import P, T, ThreadRunner

Outcome: TypeAlias = tuple[Any, BaseException | None]
MOST_TOGETHER: Final = 16
FEWEST_TRIPS: Final = 2
MOST_TRIPS: Final = 8
GOAL: Final = 1000.0
"""Pieces a second for which trips are added, as long as that many are asked for."""


class SharedTrips:
    """``ThreadRunner`` for short work; each piece has its own result, in no order among them.

    What waits is as much as the callers have under way at once: they bound it.
    """

    def __init__(self, threads: ThreadRunner, timer: Callable[[], float] = perf_counter) -> None:
        self._threads = threads
        self._timer = timer
        self._waiting: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()
        self._under_way = 0
        self._seconds_each = 0.0

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        self._waiting.append((partial(work, *args, **kwargs), result))
        self._depart()
        return result

    @property
    def trips(self) -> int:
        """How many may be under way (Little's law: rate times time of each)."""
        return min(max(int(GOAL * self._seconds_each), FEWEST_TRIPS), MOST_TRIPS)

    def _depart(self) -> None:
        while self._waiting and self._under_way < self.trips:
            together = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))
            ]
            self._under_way += 1
            trip = self._threads.run(self._do, [work for work, _ in together])
            trip.addCallback(self._arrive, [result for _, result in together])

    def _do(self, together: list[Callable[[], Any]]) -> tuple[list[Outcome], float]:
        begun = self._timer()
        return [_outcome(work) for work in together], (self._timer() - begun) / len(together)

    def _arrive(self, came: tuple[list[Outcome], float], results: list[Deferred[Any]]) -> None:
        outcomes, seconds = came
        self._under_way -= 1
        self._seconds_each += (seconds - self._seconds_each) / 4
        self._depart()
        for result, (value, error) in zip(results, outcomes, strict=True):
            if error is None:
                result.callback(value)
            else:
                result.errback(error)


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return work(), None
    except BaseException as error:
        return None, error

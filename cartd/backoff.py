"""Exponential backoff: how long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import islice
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_DELAY = 0.5
MAX_DELAY = 60.0
MAX_REQUEST_RETRY_AFTER = 300.0
"""Seconds of a Retry-After that are honoured before a request is retried."""


def delays(attempts: int, random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between ``attempts`` attempts: one fewer than those."""
    return islice(endless_delays(random), attempts - 1)


def endless_delays(random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between attempts that have no end.

    They double from half a second to ``MAX_DELAY``.  ``random`` returns a number in [0, 1), which
    adds a jitter of a quarter either way: files that failed together are not retried together.
    """
    delay = FIRST_DELAY
    while True:
        yield delay * (0.75 + random() / 2)
        delay = min(delay * 2, MAX_DELAY)


def with_retry_after(delay: float, retry_after: float | None) -> float:
    """Return ``delay``, or ``retry_after`` (cut to ``MAX_REQUEST_RETRY_AFTER``) if longer."""
    return max(delay, min(retry_after or 0.0, MAX_REQUEST_RETRY_AFTER))


class Backoff(Generic[K]):
    """A delay for each key that failed; each further failure in a row doubles it.

    ``seconds`` is a steady clock.  The first ``free_failures`` failures of a key cause no delay,
    the next one a delay of ``first`` seconds, and no delay is longer than ``longest``.  A key that
    has not failed for ``forget_after`` seconds begins anew.
    """

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        first: float = 1.0,
        longest: float = 3600.0,
        free_failures: int = 0,
        forget_after: float = inf,
    ) -> None:
        self._seconds = seconds
        self._first = first
        self._longest = longest
        self._free_failures = free_failures
        self._forget_after = forget_after
        self._failures: dict[K, tuple[int, float]] = {}
        """How often each key failed in a row, and when it did last; the latest last."""

    def __len__(self) -> int:
        """How many keys failed at their last attempt."""
        return len(self._failures)

    def failed(self, key: K) -> None:
        now = self._seconds()
        self._forget(now)
        times, _ = self._failures.pop(key, (0, now))
        self._failures[key] = times + 1, now

    def succeeded(self, key: K) -> None:
        self._failures.pop(key, None)

    def is_waiting(self, key: K) -> bool:
        """Whether ``key`` must not be retried yet."""
        now = self._seconds()
        self._forget(now)
        times, last = self._failures.get(key, (0, now))
        return times > self._free_failures and now < last + self._delay(times)

    def keep(self, keys: Collection[K]) -> None:
        """Forget all keys but these."""
        for key in self._failures.keys() - set(keys):
            del self._failures[key]

    def _delay(self, times: int) -> float:
        doublings = min(times - self._free_failures - 1, 16)
        return min(self._first * 2.0**doublings, self._longest)

    def _forget(self, now: float) -> None:
        for key, (_, last) in list(self._failures.items()):
            if now - last < self._forget_after:
                return
            del self._failures[key]

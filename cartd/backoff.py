"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
LONGEST_PAUSE_ASKED = 300.0
"""Seconds of an archive's Retry-After that are honoured."""


def waits(tries: int, random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between ``tries`` tries: one fewer than the tries."""
    return islice(endless_waits(random), tries - 1)


def endless_waits(random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait between tries that have no end.

    They double from about half a second.  ``random`` gives a number in [0, 1) that spreads
    each wait by a quarter either way, so that files that failed together do not come back
    together.
    """
    wait = FIRST_WAIT
    while True:
        yield wait * (0.75 + random() / 2)
        wait = min(wait * 2, LONGEST_WAIT)


def as_asked(wait: float, asked: float | None) -> float:
    """The wait, or a longer one that was asked for, within reason."""
    return max(wait, min(asked or 0.0, LONGEST_PAUSE_ASKED))


class Rests(Generic[K]):
    """Things that failed and are looked at again and again: each rests longer than the time before.

    The first failure costs no rest beyond the next look, the second one ``first`` seconds, and so
    on, doubling.  Who has not failed for a while begins anew.
    """

    LONGEST = 300.0
    FORGOTTEN_AFTER = 2 * LONGEST

    def __init__(self, first: float) -> None:
        self._first = first
        self._failed: dict[K, tuple[int, float]] = {}
        """How often each failed in a row, and when it did last; the latest last."""

    def failed(self, key: K, now: float) -> None:
        self._forget(now)
        times, _ = self._failed.pop(key, (0, now))
        self._failed[key] = times + 1, now

    def is_resting(self, key: K, now: float) -> bool:
        self._forget(now)
        times, last = self._failed.get(key, (0, now))
        return times > 1 and now < last + min(self._first * 2.0 ** min(times - 2, 16), self.LONGEST)

    def _forget(self, now: float) -> None:
        for key, (_, last) in list(self._failed.items()):
            if now - last < self.FORGOTTEN_AFTER:
                return
            del self._failed[key]


class Pauses(Generic[K]):
    """A pause for each key that failed: a second, and twice as long after each further failure.

    ``seconds`` is a steady clock; no pause is longer than ``longest`` seconds.
    """

    def __init__(
        self, seconds: Callable[[], float], *, first: float = 1.0, longest: float = 3600.0
    ) -> None:
        self._seconds = seconds
        self._first = first
        self._longest = longest
        self._pauses: dict[K, tuple[float, float]] = {}
        """The length of each pause, and its end."""

    def __len__(self) -> int:
        """How many keys failed when they were last tried."""
        return len(self._pauses)

    def failed(self, key: K) -> None:
        length, _ = self._pauses.get(key, (self._first / 2, 0.0))
        length = min(length * 2, self._longest)
        self._pauses[key] = length, self._seconds() + length

    def succeeded(self, key: K) -> None:
        self._pauses.pop(key, None)

    def lasts(self, key: K) -> bool:
        """Whether ``key`` is not to be tried yet."""
        return key in self._pauses and self._seconds() < self._pauses[key][1]

    def keep(self, keys: Collection[K]) -> None:
        """Forget all keys but these."""
        for key in self._pauses.keys() - set(keys):
            del self._pauses[key]

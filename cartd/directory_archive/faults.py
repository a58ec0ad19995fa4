"""Fault injection: which requests fail, and how."""

from __future__ import annotations

import random
from enum import Enum

from cartd.sending.reader import Reader


class Fault(Enum):
    """One way in which a request fails."""

    SERVER_ERROR = "500, and nothing was done"
    UNAVAILABLE = "503, and nothing was done"
    RESET = "the connection is reset before the response head"
    TRUNCATED = "half of the body, then the connection ends"
    WRONG_BYTES = "a body of the right length whose first byte is wrong"


WITHOUT_BODY = (Fault.SERVER_ERROR, Fault.UNAVAILABLE, Fault.RESET)


class FaultInjector:
    """Makes a fraction of the requests fail; the same seed gives the same sequence."""

    def __init__(self, rate: float, seed: int | None = None) -> None:
        """``rate``: from 0 (none) to 1 (all)."""
        self._rate = rate
        self._random = random.Random(seed)  # noqa: S311  no secret  # nosec B311

    def draw(self, *, body: bool) -> Fault | None:
        """Return the fault of the next request, if any; ``body``: the response has a body."""
        if self._rate == 0 or self._random.random() >= self._rate:
            return None
        return self._random.choice(tuple(Fault) if body else WITHOUT_BODY)


class CorruptingReader:
    """A reader that inverts the first byte."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._begun = False

    def read(self, limit: int) -> bytes:
        data = self._reader.read(limit)
        if self._begun or not data:
            return data
        self._begun = True
        return bytes((data[0] ^ 0xFF,)) + data[1:]

    def close(self) -> None:
        self._reader.close()

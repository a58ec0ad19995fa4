"""The log of requests: one line for each, and one entry of the service's log for many."""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

log = Logger()


class AccessLog:
    """A file for a site's lines, which passes on together what one turn of the reactor brings.

    To make an entry of each would be a fifth of the cost of telling a status.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._lines: list[str] = []
        self._turn_end: IDelayedCall | None = None

    def write(self, line: str) -> None:
        """Take a line, which says itself when its request was."""
        self._lines.append(line)
        if self._turn_end is None:
            self._turn_end = self._clock.callLater(0, self._pass_on)

    def close(self) -> None:
        if self._turn_end is not None:
            self._turn_end.cancel()
            self._pass_on()

    def _pass_on(self) -> None:
        self._turn_end = None
        lines, self._lines = self._lines, []
        log.info("{lines}", lines="".join(lines).rstrip("\n"))

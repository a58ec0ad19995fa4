"""How many requests at once an archive can bear.

Strategy: Pacifica's own archive interface, run with threads, keeps one file handle for all of
them: requests that meet in it get each other's bytes.  A wrong file now and then is what any
archive may have.  But when several come in a short while, and not alone, files are asked for one
at a time from then on; after a while two at a time are tried, then four and so on.  A wrong file on
that way takes it back to one, and doubles the while.  A file that comes wrong twice in the same way
would have come so in any company: what was concluded from it is taken back.

With threads or without, it keeps no connection open while it has ten, and the time that goes into
new ones is more than is won by asking for more at once.  So each connection that an archive closes
after its answer means one request fewer at once, down to a few; many that it keeps, one more.
"""

from __future__ import annotations

from collections.abc import Callable

SUSPICIOUS = 2.0
"""So many wrong files together mean that it is the company."""
FADING = 0.9
"""What is left of a suspicion after a file that is right."""
FEWEST = 8
"""Requests at once that are left in any case: of so many connections, Pacifica keeps each."""
REGAIN = 1 / 256
"""Requests more at once for each connection that is kept."""
FIRST_WHILE = 5.0
LONGEST_WHILE = 300.0
"""Seconds."""


class Tolerance:
    """Told how files come, says how many may be asked for at once; at most ``most``."""

    def __init__(self, most: int, now: Callable[[], float]) -> None:
        self._most = most
        self._fewest = min(FEWEST, most)
        self._welcome = float(most)
        """How many requests at once the archive has kept connections for."""
        self._now = now
        self._suspicion = 0.0
        self._alone_since: float | None = None
        self._grounds = 0.0
        """The suspicion for which files are asked for alone."""
        self._while = FIRST_WHILE

    def places(self) -> int:
        if self._alone_since is None:
            return int(self._welcome)
        doublings = int((self._now() - self._alone_since) / self._while)
        if doublings >= self._most.bit_length():
            self._stop_asking_alone()
            return int(self._welcome)
        return min(1 << doublings, int(self._welcome))

    def answered(self, welcome: bool) -> None:
        """An answer has come, and its connection is kept by the archive or closed."""
        if welcome:
            self._welcome = min(self._welcome + REGAIN, self._most)
        else:
            self._welcome = max(self._welcome - 1, self._fewest)

    def was_right(self) -> None:
        """A file has come as it should."""
        self._suspicion *= FADING

    def was_wrong(self) -> bool:
        """Other bytes than declared have come, for the first time for this file.

        Says whether its company is suspected of that.
        """
        if self.places() == 1:
            return False  # it met nobody
        self._suspicion += 1
        if self._alone_since is not None:
            self._while = min(self._while * 2, LONGEST_WHILE)
        elif self._suspicion < SUSPICIOUS:
            return True
        self._grounds += self._suspicion
        self._suspicion = 0.0
        self._alone_since = self._now()
        return True

    def was_wrong_again(self) -> None:
        """A file for which its company was suspected has come wrong in the same way again."""
        if self._alone_since is None:
            self._suspicion = max(self._suspicion - 1, 0.0)
            return
        self._grounds -= 1
        if self._grounds < SUSPICIOUS:
            self._stop_asking_alone()

    def _stop_asking_alone(self) -> None:
        self._alone_since = None
        self._while = FIRST_WHILE
        self._grounds = 0.0

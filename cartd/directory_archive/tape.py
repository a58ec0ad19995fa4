"""A pretended library of tapes: every file is on tape until it has been recalled."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime


class TapeLibrary:
    """Remembers, for as long as the process lives, which files were recalled and when."""

    def __init__(self, clock: IReactorTime, delay: float) -> None:
        """``delay``: seconds from a recall until the file is on disk."""
        self._clock = clock
        self._delay = delay
        self._ready: dict[str, float] = {}

    def on_disk(self, archive_id: str) -> bool:
        ready = self._ready.get(archive_id)
        return ready is not None and ready <= self._clock.seconds()

    def wait(self, archive_id: str) -> float:
        """Seconds until the file is on disk, if it is recalled now at the latest."""
        ready = self._ready.get(archive_id)
        return self._delay if ready is None else max(0.0, ready - self._clock.seconds())

    def recall(self, archive_id: str) -> None:
        """Begin to bring the file to disk; asking again changes nothing."""
        self._ready.setdefault(archive_id, self._clock.seconds() + self._delay)

    def forget(self, archive_id: str) -> None:
        """The file was written, moved or deleted: what bears this id now is on tape."""
        self._ready.pop(archive_id, None)

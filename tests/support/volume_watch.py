"""Measures the peak use of a volume."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread


class Watch:
    """The peak of bytes in files of the volume during the block."""

    def __init__(self, volume: Path) -> None:
        self._volume = volume
        self._stop = Event()
        self._thread = Thread(target=self._run)
        self.most = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            # A file that is seen twice existed at the moment between.
            first, second = self._files(), self._files()
            self.most = max(self.most, sum(first[name] for name in first.keys() & second.keys()))

    def _files(self) -> dict[str, int]:
        """Return sizes by path: no path is ever reused."""
        found = {}
        for directory, _, names in os.walk(self._volume):
            for name in names:
                with suppress(FileNotFoundError):
                    path = f"{directory}/{name}"
                    found[path] = os.lstat(path).st_size
        return found

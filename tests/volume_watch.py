"""How full a volume was at most."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread


class Watch:
    """The most bytes that were seen together in files of the volume while the block ran."""

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
            # What is seen twice was there at the moment between.
            first, second = self._files(), self._files()
            self.most = max(self.most, sum(first[name] for name in first.keys() & second.keys()))

    def _files(self) -> dict[str, int]:
        """Sizes by path: no two files ever have the same one."""
        found = {}
        for directory, _, names in os.walk(self._volume):
            for name in names:
                with suppress(FileNotFoundError):
                    path = f"{directory}/{name}"
                    found[path] = os.lstat(path).st_size
        return found

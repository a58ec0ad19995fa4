"""Certificates that are reloaded when their files change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from twisted.logger import Logger

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError

T = TypeVar("T")

RELOAD_INTERVAL = 2.0
"""Seconds between two polls of the files, which only read their metadata."""

log = Logger()


class ReloadingCertificate(Generic[T]):
    """Holds the result of ``make``, which reads ``files``, as ``current``; :meth:`poll` reloads it.

    The constructor calls ``make`` at once, and raises its :class:`ConfigError` if a file is
    unusable.  Later calls are made in a thread.
    """

    def __init__(self, name: str, files: Sequence[Path], make: Callable[[], T]) -> None:
        """``name`` is for the log, such as ``The certificate of ssl:443``."""
        self._files = tuple(files)
        self._name = name
        self._make = make
        self._loaded_state = self._file_states()
        self.current = make()

    async def poll(self, threads: ThreadRunner) -> None:
        """Reload if a file has changed since the last reload.

        Raises :class:`ConfigError`, and keeps ``current``, if the files are unusable, which may be
        because they are only partly written.  The next poll tries again.
        """
        try:
            found = await threads.run(self._reload_if_changed)
        except ConfigError as error:
            raise ConfigError(
                f"{self._name} not reloaded, the previous one stays in use: {error}"
            ) from error
        if found is not None:
            self._loaded_state, self.current = found
            log.info("{name} reloaded", name=self._name)

    def _reload_if_changed(self) -> tuple[object, T] | None:
        # The state first: changes made while reading are detected by the next poll.
        state = self._file_states()
        return None if state == self._loaded_state else (state, self._make())

    def _file_states(self) -> object:
        return [_file_state(file) for file in self._files]


def _file_state(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        return error.errno  # make reports it
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

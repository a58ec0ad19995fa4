"""What is made of files, and made again when these have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from twisted.logger import Logger

from cartd.errors import ConfigError
from cartd.threads import ThreadRunner

T = TypeVar("T")

RELOAD_INTERVAL = 2.0
"""Seconds between two looks at the files; nothing but their dates and sizes is read then."""

log = Logger()


class ReloadingCertificate(Generic[T]):
    """Holds what ``make`` made of ``files``: as ``current``, for whoever begins to use it.

    ``make`` runs away from the reactor, and raises :class:`ConfigError` if a file cannot be used;
    the first time, here and at once, that comes out of the constructor.
    """

    def __init__(self, name: str, files: Sequence[Path], make: Callable[[], T]) -> None:
        """``name`` is for the log, as ``the certificate of ssl:443``."""
        self._files = tuple(files)
        self._name = name
        self._make = make
        self._loaded_state = self._file_states()
        self.current = make()

    async def poll(self, threads: ThreadRunner) -> None:
        """Make it again if a file is another one than it was made of.

        Raises :class:`ConfigError`, and keeps what there is, if the files cannot be used as they
        are now: half of them may be written.  The next look tries again.
        """
        try:
            found = await threads.run(self._reload_if_changed)
        except ConfigError as error:
            raise ConfigError(
                f"{self._name} is not renewed, and the old one kept: {error}"
            ) from error
        if found is not None:
            self._loaded_state, self.current = found
            log.info("{name} is renewed", name=self._name)

    def _reload_if_changed(self) -> tuple[object, T] | None:
        # The look comes first: what is written meanwhile is seen by the next one.
        state = self._file_states()
        return None if state == self._loaded_state else (state, self._make())

    def _file_states(self) -> object:
        return [_file_state(file) for file in self._files]


def _file_state(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        return error.errno  # to read it will tell
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

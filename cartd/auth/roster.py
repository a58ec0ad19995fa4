"""Who may use the service at the moment, as the file of tokens says it."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from cartd.auth.entries import Entry
from cartd.auth.token_file import Stamp, TokenFile
from cartd.errors import ConfigError
from cartd.model import User
from cartd.threads import RunsInThread

log = Logger()


class Roster:
    """The entries of the file, read again when it changes; of a broken one, the ones before."""

    def __init__(self, file: TokenFile | None, threads: RunsInThread) -> None:
        """Reads the file, blocking.  Without one there is nobody in it.

        :raises ConfigError: it cannot be read.
        """
        self._file = file
        self._threads = threads
        self._entries: Mapping[str, Entry] = {}
        self._stamp: Stamp = ()
        self._fault: ConfigError | None = None
        if file is not None:
            self._stamp, self._entries = file.stamp(), file.entries()

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def user(self, name: str) -> User:
        """Somebody of that name, who is an admin if the file says so."""
        entry = self._entries.get(name)
        return User(name) if entry is None else entry.user

    async def look(self) -> None:
        """Read the file again if it has changed.

        :raises ConfigError: it cannot be read; who was in it before may still use the service.
        """
        if self._file is None:
            return
        try:
            await self._read(self._file)
        except ConfigError as error:
            raise ConfigError(f"{error}; the tokens read before stay valid") from None

    async def _read(self, file: TokenFile) -> None:
        stamp = await self._threads.run(file.stamp)
        if stamp == self._stamp:
            if self._fault is not None:
                raise self._fault
            return
        # Before the reading: what changes during it is read at the next look.
        self._stamp, self._fault = stamp, None
        try:
            self._entries = await self._threads.run(file.entries)
        except ConfigError as error:
            self._fault = error
            raise
        log.info(
            "{file} was read again: {number} tokens", file=file.path, number=len(self._entries)
        )

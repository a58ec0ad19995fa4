"""Who may use the service at the moment, as the file of tokens says it."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from cartd.auth.entries import Entry
from cartd.auth.token_file import Stamp, TokenFile
from cartd.errors import ConfigError, Unavailable
from cartd.model import User
from cartd.threads import ThreadRunner

GRACE = 5.0
"""Seconds for which the tokens read before are accepted although the file cannot be read.

Long enough for a file that is edited in its place or copied to a slow disk, so that a change is
never an outage; short enough that a token whose revocation cannot be read ends in seconds."""
LOG_INTERVAL = 60.0
"""Seconds between two lines in the log that say that no token is accepted."""

log = Logger()


class TokenRegistry:
    """The entries of the file, read again when it changes.

    It fails closed: when the file cannot be read for :data:`GRACE`, or a look at it does not come
    back for so long, nobody is in it until it can be read again.
    """

    def __init__(self, file: TokenFile | None, threads: ThreadRunner, clock: IReactorTime) -> None:
        """Reads the file, blocking.  Without one there is nobody in it.

        :raises ConfigError: it cannot be read.
        """
        self._file = file
        self._threads = threads
        self._clock = clock
        self._entries: Mapping[str, Entry] = {}
        self._stamp: Stamp = ()
        self._failing_since: float | None = None
        """When the first look began of those that have not ended well; none after one that has."""
        self._reason = ""
        self._logged_at: float | None = None
        if file is not None:
            self._stamp, self._entries = file.read()

    def entry(self, name: str) -> Entry | None:
        """Raises Unavailable if that is not known now."""
        self._require_open()
        return self._entries.get(name)

    def user(self, name: str) -> User:
        """Somebody of that name, who is an admin if the file says so.

        :raises Unavailable: it said so, but may not any more.
        """
        entry = self._entries.get(name)
        if entry is None:
            return User(name)
        if entry.user.admin:
            self._require_open()
        return entry.user

    async def poll(self) -> None:
        """Read the file again if it has changed; that it cannot be read is for the log."""
        if self._file is None:
            return
        if self._failing_since is None:
            self._failing_since = self._clock.seconds()
        try:
            await self._read(self._file)
        except ConfigError as error:
            self._reason = str(error)
            if self._closed():
                self._log_closed()
            return
        self._failing_since = None
        self._reason = ""
        if self._logged_at is not None:
            self._logged_at = None
            log.info("{file} can be read again, and tokens are accepted", file=self._file.path)

    async def _read(self, file: TokenFile) -> None:
        # Of a file that cannot be read, the stamp of the one before is kept: it is tried again.
        if await self._threads.run(file.stamp) == self._stamp:
            return
        self._stamp, self._entries = await self._threads.run(file.read)
        log.info(
            "{file} was read again: {number} tokens", file=file.path, number=len(self._entries)
        )

    def _closed(self) -> bool:
        since = self._failing_since
        return since is not None and self._clock.seconds() - since >= GRACE

    def _require_open(self) -> None:
        if self._closed():
            self._log_closed()
            raise Unavailable("The file of tokens cannot be read, so no token is accepted now")

    def _log_closed(self) -> None:
        now = self._clock.seconds()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL:
            return
        self._logged_at = now
        assert self._file is not None
        log.error(
            "{fault}: who was revoked cannot be known, so NO TOKEN IS ACCEPTED, and requests get"
            " 503, until it can be read; it is tried every second",
            fault=self._reason or f"{self._file.path}: the disk does not answer",
        )

"""The users that may currently use the service, from the token file."""

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
"""Seconds for which the tokens read last stay valid while the file cannot be read.

Long enough for a file that is edited in place or copied to a slow disk, so that a change is never
an outage; short enough that a revoked token stops working within seconds."""
LOG_INTERVAL = 60.0
"""Seconds between two log lines that say that no token is accepted."""

log = Logger()


class TokenRegistry:
    """The entries of the token file, reloaded when it changes.

    It fails closed: if the file cannot be read for :data:`GRACE` seconds, or a poll hangs for that
    long, no token is accepted until the file can be read again.
    """

    def __init__(self, file: TokenFile | None, threads: ThreadRunner, clock: IReactorTime) -> None:
        """Read the file, which blocks.  Without a file the registry is empty.

        :raises ConfigError: the file cannot be read.
        """
        self._file = file
        self._threads = threads
        self._clock = clock
        self._entries: Mapping[str, Entry] = {}
        self._stamp: Stamp = ()
        self._failing_since: float | None = None
        """When the first of the failing polls began; None after a successful poll."""
        self._reason = ""
        self._logged_at: float | None = None
        if file is not None:
            self._stamp, self._entries = file.read()

    def entry(self, name: str) -> Entry | None:
        """Return the entry of ``name``.  Raises Unavailable while the file cannot be read."""
        self._require_open()
        return self._entries.get(name)

    def user(self, name: str) -> User:
        """Return the user of that name, an admin if the file says so.

        :raises Unavailable: it said so, and the file cannot be read any more.
        """
        entry = self._entries.get(name)
        if entry is None:
            return User(name)
        if entry.user.admin:
            self._require_open()
        return entry.user

    async def poll(self) -> None:
        """Reload the file if it has changed; a failure is logged, not raised."""
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
            log.info("{file} is readable again: tokens are accepted", file=self._file.path)

    async def _read(self, file: TokenFile) -> None:
        # If reading fails, the old stamp is kept, so that the next poll tries again.
        if await self._threads.run(file.stamp) == self._stamp:
            return
        self._stamp, self._entries = await self._threads.run(file.read)
        log.info("{file} reloaded: {number} tokens", file=file.path, number=len(self._entries))

    def _closed(self) -> bool:
        since = self._failing_since
        return since is not None and self._clock.seconds() - since >= GRACE

    def _require_open(self) -> None:
        if self._closed():
            self._log_closed()
            raise Unavailable("The token file cannot be read, so no token is accepted now")

    def _log_closed(self) -> None:
        now = self._clock.seconds()
        if self._logged_at is not None and now - self._logged_at < LOG_INTERVAL:
            return
        self._logged_at = now
        assert self._file is not None
        log.error(
            "{fault}: NO TOKEN IS ACCEPTED and requests get 503 until the token file can be read,"
            " because revoked tokens are unknown; retried every second",
            fault=self._reason or f"{self._file.path}: the disk does not respond",
        )

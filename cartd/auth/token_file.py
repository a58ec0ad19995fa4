"""The token file: changed by ``cartd-cmd token``, and reloaded by the service when it changes.

All methods of :class:`TokenFile` block; :class:`TokenRegistry` calls them in threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from cartd.auth.tokens import Entry, TokenHash, check_name, line_name, new_token, parse_entries
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError, Unavailable
from cartd.files import (
    LocksUnsupported,
    describe_permissions,
    lock_holder,
    replace_file,
    this_user,
    try_lock,
)
from cartd.model import User

log = Logger()

LOCK_WAIT = 10.0
"""Seconds that a change waits for the lock; a change takes milliseconds."""
LOCK_PAUSE = 0.05
"""Seconds between two attempts."""
GRACE = 5.0
"""Seconds for which the tokens read last stay valid while the file cannot be read.

Long enough for a file that is edited in place or copied to a slow disk, so that a change is never
an outage; short enough that a revoked token stops working within seconds."""
LOG_INTERVAL = 60.0
"""Seconds between two log lines that say that no token is accepted."""

Stamp = tuple[int, ...]


class TokenFile:
    """Raises ConfigError, with one line that names the file, for every failure."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp:
        """Return a value that differs whenever the file has changed."""
        with self._errors_with_path():
            return _stamp(self.path)

    def read(self) -> tuple[Stamp, Mapping[str, Entry]]:
        """Return all entries by name, and the stamp of the file that they were read from."""
        stamp = self.stamp()
        entries = self.entries()
        if self.stamp() != stamp:
            raise ConfigError(f"{self.path}: changed while it was read")
        return stamp, entries

    def entries(self) -> Mapping[str, Entry]:
        """Return all entries by name."""
        with self._errors_with_path():
            return parse_entries(self.path.read_text(encoding="utf-8"))

    def add(self, name: str, *, admin: bool) -> str:
        """Add a new name and return its token, which is not stored."""
        with self._exclusive():
            check_name(name)
            if self.path.exists() and name in self.entries():
                raise ConfigError(
                    f"{name} already has a token; to replace it, revoke it first"
                    f" (cartd-cmd token revoke {name})"
                )
            token = new_token(name)
            line = f"{Entry(User(name, admin), TokenHash.of(token.encode()))}\n"
            self._rewrite(lambda lines: [*_with_final_newline(lines), line])
            return token

    def revoke(self, name: str) -> None:
        """Remove a name."""
        with self._exclusive():
            if name not in self.entries():
                raise ConfigError(f"{self.path}: {name!a} not found")
            self._rewrite(lambda lines: [line for line in lines if line_name(line) != name])

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Replace the file atomically: readers see the old one or the new one."""
        # Change the file that a symbolic link points to.
        path = self.path.resolve()
        before = _stamp(path) if path.exists() else None
        lines = [] if before is None else path.read_text("utf-8").splitlines(keepends=True)
        data = "".join(change(lines)).encode()
        # Editors, and commands on file systems without locks, are not excluded by the lock.
        if before != (_stamp(path) if path.exists() else None):
            raise ConfigError(f"{self.path}: changed by another process in the meantime; try again")
        try:
            replace_file(path, data)
        except PermissionError as error:
            raise ConfigError(
                f"{self.path}: {this_user()} cannot replace it ({error.strerror}): it needs write"
                f" access to {path.parent} ({describe_permissions(path.parent)}), and the file's"
                f" owner, group and mode are kept{_current_mode(path)}"
            ) from None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Lock out concurrent changes: two at once would lose one of the tokens.

        The lock is on the directory: the file itself is replaced by each change, and a lock file
        would belong to the first user and exclude others.
        """
        with self._errors_with_path():
            directory = self.path.resolve().parent
            try:
                fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            except PermissionError:  # Windows cannot open a directory
                yield
                return
            try:
                self._wait_for_lock(fd, directory)
                yield
            finally:
                os.close(fd)

    def _wait_for_lock(self, fd: int, directory: Path) -> None:
        """Wait for the lock; do nothing if the file system has none."""
        until = time.monotonic() + LOCK_WAIT
        with suppress(LocksUnsupported):
            while not try_lock(fd):
                if time.monotonic() >= until:
                    holder = lock_holder(fd) or "another process"
                    raise ConfigError(
                        f"{self.path}: {directory} has been locked by {holder} for {LOCK_WAIT:g} s,"
                        " as by cartd-cmd token while it changes the file; wait for it to end, or"
                        " stop it, and try again"
                    )
                time.sleep(LOCK_PAUSE)

    @contextmanager
    def _errors_with_path(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path}: no such file; create it with cartd-cmd token add NAME"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: not UTF-8") from None
        except PermissionError as error:
            raise ConfigError(
                f"{self.path}: {error.strerror} for {this_user()}{_current_mode(self.path)}"
            ) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{self.path}: {reason}") from None


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _current_mode(path: Path) -> str:
    return f" (it is {shown})" if (shown := describe_permissions(path)) else ""


def _with_final_newline(lines: list[str]) -> list[str]:
    """Append the final newline, which a file edited by hand may lack."""
    if lines and not lines[-1].endswith("\n"):
        return [*lines[:-1], lines[-1] + "\n"]
    return lines


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
        # If reading fails, the old stamp is kept, so that the next poll retries.
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

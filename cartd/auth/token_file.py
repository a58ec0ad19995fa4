"""The file of tokens on the disk: read by the service, changed by ``cartd-cmd token``.

Everything here blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cartd.atomic_write import replace_file
from cartd.auth.entries import Entry, check_name, line_name, parse
from cartd.auth.tokens import TokenHash, new_token
from cartd.errors import ConfigError
from cartd.locks import LocksUnsupported, lock_holder, try_lock
from cartd.model import User
from cartd.permissions import describe_permissions, this_user

LOCK_WAIT = 10.0
"""Seconds for which a change waits for another one, which takes milliseconds."""
LOCK_PAUSE = 0.05
"""Seconds between two tries."""

Stamp = tuple[int, ...]


class TokenFile:
    """Raises ConfigError, with one line that names the file, for all that goes wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp:
        """What changes whenever the file does."""
        with self._errors_with_path():
            return _stamp(self.path)

    def read(self) -> tuple[Stamp, Mapping[str, Entry]]:
        """All who are in it, and the stamp of the very file that says so."""
        stamp = self.stamp()
        entries = self.entries()
        if self.stamp() != stamp:
            raise ConfigError(f"{self.path}: it is being changed")
        return stamp, entries

    def entries(self) -> Mapping[str, Entry]:
        """All who are in it, by name."""
        with self._errors_with_path():
            return parse(self.path.read_text(encoding="utf-8"))

    def add(self, name: str, *, admin: bool) -> str:
        """Enter a new name and give its token, which is kept nowhere."""
        with self._exclusive():
            check_name(name)
            if self.path.exists() and name in self.entries():
                raise ConfigError(
                    f"{name} has a token; to give a new one, revoke that first"
                    f" (cartd-cmd token revoke {name})"
                )
            token = new_token(name)
            line = f"{Entry(User(name, admin), TokenHash.of(token.encode()))}\n"
            self._rewrite(lambda lines: [*_with_final_newline(lines), line])
            return token

    def revoke(self, name: str) -> None:
        """Take a name out."""
        with self._exclusive():
            if name not in self.entries():
                raise ConfigError(f"{self.path}: there is no {name!a}")
            self._rewrite(lambda lines: [line for line in lines if line_name(line) != name])

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Put a changed file in its place; who reads sees the old one or the new one."""
        # Where a link leads is what is to be changed.
        path = self.path.resolve()
        before = _stamp(path) if path.exists() else None
        lines = [] if before is None else path.read_text("utf-8").splitlines(keepends=True)
        data = "".join(change(lines)).encode()
        # Who edits it by hand, and two commands where there are no locks, cannot be kept away.
        if before != (_stamp(path) if path.exists() else None):
            raise ConfigError(f"{self.path}: somebody else has changed it just now; try again")
        try:
            replace_file(path, data)
        except PermissionError as error:
            raise ConfigError(
                f"{self.path}: {this_user()} cannot replace it ({error.strerror}): that takes write"
                f" access to {path.parent} ({describe_permissions(path.parent)}), and its owner,"
                f" group and"
                f" mode are kept{_current_mode(path)}"
            ) from None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One at a time: two that add at once would lose one of their tokens.

        The directory is locked: the file itself is another one after each change, and a file beside
        it would belong to whoever comes first, and keep others out.
        """
        with self._errors_with_path():
            directory = self.path.resolve().parent
            try:
                fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            except PermissionError:  # Windows opens no directory
                yield
                return
            try:
                self._wait_for_lock(fd, directory)
                yield
            finally:
                os.close(fd)

    def _wait_for_lock(self, fd: int, directory: Path) -> None:
        """Where there are no locks, nothing is waited for."""
        until = time.monotonic() + LOCK_WAIT
        with suppress(LocksUnsupported):
            while not try_lock(fd):
                if time.monotonic() >= until:
                    holder = lock_holder(fd) or "another process"
                    raise ConfigError(
                        f"{self.path}: {holder} has locked {directory} for {LOCK_WAIT:g} s, as"
                        " cartd-cmd token does while it changes the file; wait until it has ended,"
                        " or end it, and try again"
                    )
                time.sleep(LOCK_PAUSE)

    @contextmanager
    def _errors_with_path(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path}: there is no such file; cartd-cmd token add NAME makes it"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: it is not UTF-8") from None
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
    """The last line of a file that was edited by hand may lack its end."""
    if lines and not lines[-1].endswith("\n"):
        return [*lines[:-1], lines[-1] + "\n"]
    return lines

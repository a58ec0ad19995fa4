"""The file of tokens on the disk: read by the service, changed by ``cartd-cmd token``.

Everything here blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock

from cartd.auth.entries import Entry, check_name, name_of_line, parse
from cartd.auth.tokens import TokenHash, new_token
from cartd.errors import ConfigError
from cartd.model import User

Stamp = tuple[int, ...]


class TokenFile:
    """Raises ConfigError, with one line that names the file, for all that goes wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp:
        """What changes whenever the file does."""
        with self._named_faults():
            state = self.path.stat()
            return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def entries(self) -> Mapping[str, Entry]:
        """All who are in it, by name."""
        with self._named_faults():
            return parse(self.path.read_text(encoding="utf-8"))

    def add(self, name: str, *, admin: bool) -> str:
        """Enter a new name and give its token, which is kept nowhere."""
        with self._changing():
            check_name(name)
            if self.path.exists() and name in self.entries():
                raise ConfigError(
                    f"{name} has a token; to give a new one, revoke that first"
                    f" (cartd-cmd token revoke {name})"
                )
            token = new_token(name)
            line = f"{Entry(User(name, admin), TokenHash.of(token.encode()))}\n"
            self._rewrite(lambda lines: [*_ended(lines), line])
            return token

    def revoke(self, name: str) -> None:
        """Take a name out."""
        with self._changing():
            if name not in self.entries():
                raise ConfigError(f"{self.path}: there is no {name!a}")
            self._rewrite(lambda lines: [line for line in lines if name_of_line(line) != name])

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Put a changed file in its place; who reads sees the old one or the new one."""
        # Where a link leads is what is to be changed, and its owner is to be able to read it.
        path = self.path.resolve()
        before = path.stat() if path.exists() else None
        lines = [] if before is None else path.read_text("utf-8").splitlines(keepends=True)
        written = NamedTemporaryFile(  # noqa: SIM115 (it is closed before it is renamed)
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        )  # its mode is 0600
        try:
            with written:
                written.writelines(change(lines))
                written.flush()
                if before is not None and before.st_uid != os.geteuid():
                    os.fchown(written.fileno(), before.st_uid, before.st_gid)
                os.fsync(written.fileno())
            Path(written.name).replace(path)
        except BaseException:
            Path(written.name).unlink()
            raise

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One at a time: two that add at once would lose one of their tokens."""
        with self._named_faults():
            path = self.path.resolve()
            with FileLock(path.with_name(f".{path.name}.lock"), mode=0o600):
                yield

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path}: there is no such file; cartd-cmd token add NAME makes it"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: it is not UTF-8") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{self.path}: {reason}") from None


def _ended(lines: list[str]) -> list[str]:
    """The last line of a file that was edited by hand may lack its end."""
    if lines and not lines[-1].endswith("\n"):
        return [*lines[:-1], lines[-1] + "\n"]
    return lines

"""What a download needs to go on after any end of its process: state, journal and lock.

The *state* is a small JSON file, replaced atomically after each batch of members, when these are
on the disk under their names.  The *journal* has a line for each member since then.  A killed
process loses nothing that it has written, as the system has it; after a crash of the system only
the state counts, and what the journal names is read and hashed again.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cartd_client.errors import ClientError
from cartd_client.tar_stream import Member

VERSION = 1
_MAX_STATE = 16 << 20


@dataclass
class State:
    """Where a download is: all members before ``position`` are settled."""

    url: str
    filename: str
    format: str
    etag: str | None = None
    length: int | None = None
    position: int = 0
    """Offset in the tar up to which all is on the disk, and verified unless it is in ``wrong``."""
    files: int = 0
    bytes: int = 0
    verified: dict[str, int] = field(default_factory=dict)
    unverified: int = 0
    wrong: list[list[Any]] = field(default_factory=list)
    """Members whose content was wrong, each with the reason."""
    missing: list[dict[str, Any]] = field(default_factory=list)
    tags: list[list[Any]] = field(default_factory=list)
    """Name, offset and size of the files about files before ``position``."""
    in_order: bool = True
    boot: str = ""
    version: int = VERSION

    @property
    def spans(self) -> list[list[int]]:
        """What is done, as pairs of offsets."""
        return [[0, self.position]] if self.position else []


def load_state(path: Path) -> State | None:
    """Return the state in a file; None if there is none that this version understands."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_STATE))
        document.pop("spans", None)
        state = State(**document)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    is_valid = (
        state.version == VERSION
        and isinstance(state.position, int)
        and isinstance(state.wrong, list)
        and isinstance(state.verified, dict)
    )
    return state if is_valid else None


def save_state(path: Path, state: State) -> None:
    """Replace the file atomically; it is on the disk afterwards."""
    state.boot = boot_id()
    document = json.dumps({**asdict(state), "spans": state.spans}, indent=1)
    temporary = path.with_name(path.name + "~")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(document.encode())
        file.flush()
        sync_file(fd)
    temporary.replace(path)
    sync_directory(path.parent)


_BINARY = getattr(os, "O_BINARY", 0)


def sync_file(fd: int) -> None:
    """Have the file on the disk, not only in its cache."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Have the names of a directory on the disk, where the system permits to ask for it."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def boot_id() -> str:
    """Return what identifies this run of the system; ``""`` if it is not known."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class Journal:
    """Lines about members, appended to a file; buffered until :meth:`flush`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o600)
        self._lines: list[str] = []

    def add(self, index: int, member: Member, outcome: str | None) -> None:
        """Note a member before its content is written, or with its outcome after that."""
        name, size, mtime_ns, mode, is_directory, start, data = member
        # As json.dumps() of a list, in a fraction of its time.
        self._lines.append(
            f"[{index}, {'null' if outcome is None else _quoted(outcome)}, {_quoted(name)}, {size},"
            f" {mtime_ns}, {mode}, {'true' if is_directory else 'false'}, {start}, {data}]"
        )

    def flush(self) -> None:
        """Hand the lines to the system."""
        if self._lines:
            text = "\n".join(self._lines) + "\n"
            self._lines.clear()
            write_all(self._fd, text.encode())

    def close(self) -> None:
        """Flush and close."""
        with suppress(OSError):
            self.flush()
        os.close(self._fd)


_quoted = json.encoder.encode_basestring_ascii


def read_journal(path: Path) -> Iterator[tuple[int, str | None, Member]]:
    """Yield the complete lines of a journal; ends at one that is torn."""
    try:
        with path.open("rb") as file:
            for line in file:
                index, outcome, *fields = json.loads(line)
                if not line.endswith(b"\n"):
                    return
                yield int(index), outcome, Member(*fields)
    except (OSError, ValueError, TypeError):
        return


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all bytes: the system may take only a part."""
    written = os.write(fd, data)
    while written < len(data):
        data = memoryview(data)[written:]
        written = os.write(fd, data)


class Lock:
    """Excludes other processes from a target, until :meth:`release` or the end of this one."""

    def __init__(self, path: Path, what: str) -> None:
        """Create the file, and lock it.

        :raises ClientError: another process has the lock.
        """
        while True:
            self._fd = os.open(
                path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | _BINARY, 0o600
            )
            try:
                _lock(self._fd)
            except BlockingIOError as error:
                os.close(self._fd)
                raise ClientError(
                    f"Another process downloads to {what}: wait until it has ended"
                ) from error
            # The other one may have removed or renamed the file before this one had the lock.
            with suppress(OSError):
                if os.name == "nt" or os.path.samestat(os.fstat(self._fd), path.stat()):
                    return
            os.close(self._fd)

    def release(self) -> None:
        """Let others in."""
        os.close(self._fd)


def _lock(fd: int) -> None:
    """Lock the file; raises BlockingIOError if another process has the lock."""
    if sys.platform == "win32":
        import msvcrt

        # Far behind the content, which others may read.
        os.lseek(fd, 1 << 40, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        os.lseek(fd, 0, os.SEEK_SET)
    else:
        import fcntl

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems of networks have no locks: there it works without.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise

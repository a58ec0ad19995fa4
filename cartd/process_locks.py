"""Who works on this volume, and who has died.

A process that stages carts holds leases in the store under a name of its own, and keeps a
locked file of that name on the volume.  The system lets go of the lock when the process
ends, however it ends: so the leases of a killed process can be taken over at once, and
those of a process on another machine, whose lock cannot be seen, when they expire.

Where the volume has no locks, that is so for all processes: a name whose file was never locked says
so by what is in the file, for a process that sees locks there later.

A name tells the machine in two ways, either of which will do: a container may have another host
name at each start, but shares the kernel, and with it the locks, of all containers beside it; and
a machine has another boot id after a restart, but its host name still.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from cartd.locks import LocksUnsupported, try_lock
from cartd.rooted_fs import LOCK_FLAGS, RootedFS, require_regular

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_BOOT_ID = "0"
LOCK_ATTEMPTS = 10
"""How often a process tries to lock its file, which another one may just look at."""
NOT_LOCKED = b"This file is not locked, as the volume had no locks when it was made.\n"
_NAME = re.compile(r"(?P<host>[^/\\]+)-(?P<boot>[0-9a-f]{8}|0)-[0-9]+-[0-9a-f]{8}")


def boot_id() -> str:
    """What a kernel is called from its start to its end; ``NO_BOOT_ID`` where it has no name."""
    try:
        return BOOT_ID.read_text()[:8]
    except OSError:
        return NO_BOOT_ID


class ProcessLocks:
    """The lock files in one directory; all methods block for no more than a file's touch."""

    def __init__(self, directory: Path, *, host: str = "", boot: str = "") -> None:
        """``host`` and ``boot`` are this machine's unless given."""
        self._directory = directory
        self._host = re.sub(r"[/\\]", "_", host or socket.gethostname()) or "localhost"
        self._boot = boot or boot_id()
        self.name = f"{self._host}-{self._boot}-{os.getpid()}-{secrets.token_hex(4)}"
        # The directory may be exchanged for a link; the one above it is the volume's root.
        self._fs = RootedFS(directory.parent)
        self._lock_fd: int | None = None
        self.no_locks_reason = ""
        """Why nobody can see whether this process is alive; '' if the file is locked."""

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"

    def start(self) -> None:
        """Take the lock of this process, and sweep away those that dead ones left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._fs:
            for _ in range(LOCK_ATTEMPTS):
                if self._lock_fd is None:
                    self._lock_fd = self._create_and_lock()
            if self._lock_fd is None:
                reason = "other processes keep locking what this one makes there; start it again"
                raise OSError(errno.EBUSY, reason, str(self._directory))
            with self._fs.directory(self._directory) as opened, os.scandir(opened) as found:
                names = [entry.name for entry in found]
        for name in names:
            if name.endswith(".lock"):
                self._is_dead(name.removesuffix(".lock"))

    def _create_and_lock(self) -> int | None:
        """A descriptor of this process's new file, locked if there are locks; or to be tried again.

        Between its creation and its lock another process that starts may take it for a dead one's.
        """
        path = self._path(self.name)
        fd = self._fs.open(path, LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            if try_lock(fd) and os.path.samestat(os.fstat(fd), self._fs.lstat(path)):
                return fd
        except LocksUnsupported as error:
            self.no_locks_reason = error.strerror or str(error)
            os.write(fd, NOT_LOCKED)
            return fd
        except FileNotFoundError:
            pass
        os.close(fd)
        self._fs.unlink(path)
        return None

    def stop(self) -> None:
        """Let go of the lock, if it is held; others may then take over what this process had."""
        if self._lock_fd is not None:
            held, self._lock_fd = self._lock_fd, None
            os.close(held)
            with suppress(OSError), self._fs:
                self._fs.unlink(self._path(self.name))

    def dead_among(self, names: Iterable[str]) -> set[str]:
        """Give those of ``names`` whose process has ended on this volume."""
        return {name for name in names if name != self.name and self._is_dead(name)}

    def _is_local(self, name: str) -> bool:
        """Whether the lock of that name can be seen here; false for what is no such name."""
        parts = _NAME.fullmatch(name)
        if parts is None:
            return False
        same_kernel = parts["boot"] == self._boot != NO_BOOT_ID
        return same_kernel or parts["host"] == self._host

    def _is_dead(self, name: str) -> bool:
        if name == self.name or not self._is_local(name):
            return False
        path = self._path(name)
        with self._fs:
            try:
                lock = require_regular(self._fs.open(path, LOCK_FLAGS))
            except FileNotFoundError:
                return True
            except OSError:
                return False  # it is no lock of ours, or cannot be seen: its leases will tell
            try:
                if not try_lock(lock) or os.fstat(lock).st_size:
                    return False
            except LocksUnsupported:
                return False  # its leases will tell
            finally:
                os.close(lock)  # Windows removes no file that is open
            self._fs.unlink(path)
        return True


class LeaseObserver:
    """Who has renewed no lease for so many ``seconds``, by the steady clock of who looks.

    By their dates alone, the leases of a dead process seem to hold for as long as this machine's
    clock has been set back, or is behind that of another.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[str, tuple[float, float]] = {}
        """By name, the end of the lease that was seen last, and when it was seen first."""

    def expired(self, ends: Mapping[str, float], now: float) -> set[str]:
        """Give the silent ones; ``ends`` has the latest end of a lease of each holder."""
        before = self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == end else (end, now)
            for name, end in ends.items()
        }
        return {name for name, (_, since) in self._seen.items() if now - since >= self._seconds}

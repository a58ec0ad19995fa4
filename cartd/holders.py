"""Who works on this volume, and who has died.

A process that stages carts holds leases in the store under a name of its own, and keeps a
locked file of that name on the volume.  The system lets go of the lock when the process
ends, however it ends: so the leases of a killed process can be taken over at once, and
those of a process on another machine, whose lock cannot be seen, when they expire.

A name tells the machine in two ways, either of which will do: a container may have another host
name at each start, but shares the kernel, and with it the locks, of all containers beside it; and
a machine has another boot id after a restart, but its host name still.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_BOOT_ID = "0"
_NAME = re.compile(r"(?P<host>[^/\\]+)-(?P<boot>[0-9a-f]{8}|0)-[0-9]+-[0-9a-f]{8}")


def boot_id() -> str:
    """What a kernel is called from its start to its end; ``NO_BOOT_ID`` where it has no name."""
    try:
        return BOOT_ID.read_text()[:8]
    except OSError:
        return NO_BOOT_ID


class Holders:
    """The lock files in one directory; all methods block for no more than a file's touch."""

    def __init__(self, directory: Path, *, host: str = "", boot: str = "") -> None:
        """``host`` and ``boot`` are this machine's unless given."""
        self._directory = directory
        self._host = re.sub(r"[/\\]", "_", host or socket.gethostname()) or "localhost"
        self._boot = boot or boot_id()
        self.name = f"{self._host}-{self._boot}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = FileLock(self._path(self.name))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"

    def start(self) -> None:
        """Take the lock of this process, and sweep away those that dead ones left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        for path in self._directory.glob("*.lock"):
            self._is_dead(path.name.removesuffix(".lock"))

    def stop(self) -> None:
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

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
        if not path.exists():
            return True
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()  # Windows removes no file that is open
        path.unlink(missing_ok=True)
        return True


class Silence:
    """Who has renewed no lease for so many ``seconds``, by the steady clock of who looks.

    By their dates alone, the leases of a dead process seem to hold for as long as this machine's
    clock has been set back, or is behind that of another.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[str, tuple[float, float]] = {}
        """By name, the end of the lease that was seen last, and when it was seen first."""

    def among(self, ends: Mapping[str, float], now: float) -> set[str]:
        """Give the silent ones; ``ends`` has the latest end of a lease of each holder."""
        before = self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == end else (end, now)
            for name, end in ends.items()
        }
        return {name for name, (_, since) in self._seen.items() if now - since >= self._seconds}

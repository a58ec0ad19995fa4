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
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor

from cartd.beneath import LOCK, Beneath, regular

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
        # The directory may be exchanged for a link; the one above it is the volume's root.
        self._below = Beneath(directory.parent)
        self._held: int | None = None

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"

    def start(self) -> None:
        """Take the lock of this process, and sweep away those that dead ones left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._below:
            new = LOCK | os.O_CREAT | os.O_EXCL
            self._held = self._below.open(self._path(self.name), new, 0o644)
            lock_descriptor(self._held, blocking=False)
            with self._below.directory(self._directory) as opened, os.scandir(opened) as found:
                names = [entry.name for entry in found]
        for name in names:
            if name.endswith(".lock"):
                self._is_dead(name.removesuffix(".lock"))

    def stop(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            os.close(held)
            with suppress(OSError), self._below:
                self._below.unlink(self._path(self.name))

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
        with self._below:
            try:
                lock = regular(self._below.open(path, LOCK))
            except FileNotFoundError:
                return True
            except OSError:
                return False  # it is no lock of ours, or cannot be seen: its leases will tell
            try:
                if not lock_descriptor(lock, blocking=False):
                    return False
            finally:
                os.close(lock)  # Windows removes no file that is open
            self._below.unlink(path)
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

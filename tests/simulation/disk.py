"""A disk with injected errors, on which a process may die between two system calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from cartd.volume.file_system import FileSystem, SyncFailed
from tests.simulation.power_failure import UnsyncedWrites

CHANGES = (
    "open",
    "write",
    "replace",
    "rename",
    "link",
    "unlink",
    "rmdir",
    "mkdir",
    "symlink",
    "fsync",
)
READS = ("read", "pread")
FULL = (errno.ENOSPC,)
BROKEN = (errno.EIO, errno.EROFS)
_NEEDS_SPACE = frozenset({"open", "write", "link", "mkdir", "symlink", "rename", "replace"})


class Killed(BaseException):
    """The process has died in the middle of its work."""


class Disk:
    """Intercepts the system calls that threads make for the volume.

    Only calls in a :meth:`thread_running` block may fail or be cut short; a test's own calls on the
    same files always work.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.random = Random(0)
        self.reset(self.random)

    def reset(self, random: Random) -> None:
        """Start a scenario with a healthy disk."""
        self.random = random
        self.failing: tuple[int, ...] = ()
        """Errors that calls fail with at random, until the disk is healed."""
        self.chance = 0.0
        self.failed: set[int] = set()
        """Errors that were raised."""
        self.calls = 0
        self.kill_after: int | None = None
        """System calls until the process dies in the middle of one."""
        self.unsynced = UnsyncedWrites()
        self.boots = 0
        """Number of reboots of the machine."""
        self._working = False
        self._killed = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Intercept the system calls of this process."""
        watched: dict[str, Any] = {
            name: self._intercepted(name, getattr(os, name)) for name in (*CHANGES, *READS)
        }
        watched["posix_fadvise"] = self._dropping(os.posix_fadvise)
        with patch.multiple(os, **watched):
            yield

    @contextmanager
    def thread_running(self) -> Iterator[None]:
        """Mark the work of a thread of the simulated process."""
        self._working = True
        try:
            yield
        finally:
            self._working = False
        if self._killed:
            raise Killed

    def on_start(self) -> None:
        """Reset the kill for a new process."""
        self._killed = False
        self.kill_after = None

    def on_death(self) -> None:
        """Close the files that the process has left open, as the system does."""
        self._killed = False
        self.kill_after = None
        here, holders = f"{self.root}/", f"{self.root}/holders/"
        for entry in list(Path("/proc/self/fd").iterdir()):
            try:
                target = str(entry.readlink())
            except OSError:
                continue  # the descriptor of the listing itself
            if target.startswith(here) and not target.startswith(holders):
                os.close(int(entry.name))

    def heal(self) -> None:
        self.failing, self.chance = (), 0.0

    def has_raised(self, text: str) -> bool:
        """Whether ``text`` contains an error that was raised."""
        return any(os.strerror(number) in text for number in self.failed)

    def sync(self) -> None:
        """Mark everything as synced; raises as :meth:`FileSystem.sync` does."""
        try:
            self._maybe_fail("sync", _nothing, ())
        except OSError as error:
            self.unsynced.sync_failed(self.random)
            raise SyncFailed(f"The volume's file system cannot be synced: {error}") from error
        self.unsynced.sync_succeeded()

    def lose_power(self) -> None:
        """Lose what was not synced; all processes are dead by then."""
        self.unsynced.power_fails(self.root, self.random)
        self.boots += 1

    def _intercepted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def intercepted(*args: Any, **kwargs: Any) -> Any:
            if not self._working:
                return call(*args, **kwargs)
            self._maybe_fail(name, call, args)
            result = call(*args, **kwargs)
            self.unsynced.record(name, args, kwargs)
            return result

        return intercepted

    def _dropping(self, call: Callable[..., None]) -> Callable[..., None]:
        def dropping(fd: int, *args: Any) -> None:
            if self._working:
                self.unsynced.page_cache_dropped(fd)
            call(fd, *args)

        return dropping

    def _maybe_fail(self, name: str, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._killed:
            raise Killed
        self.calls += 1
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after < 0:
                self._killed = True
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                    self.unsynced.record(name, args, {})
                raise Killed
        if self.failing and self.random.random() < self.chance:
            number = self.random.choice(self.failing)
            if number in FULL and (name not in _NEEDS_SPACE or _is_to_read(name, args)):
                return
            if number == errno.EROFS and name in READS:
                return
            self.failed.add(number)
            raise OSError(number, os.strerror(number))


def _is_to_read(name: str, args: tuple[Any, ...]) -> bool:
    return name == "open" and not args[1] & os.O_CREAT


def _nothing(*_args: Any) -> None:
    pass


class SimulatedFileSystem(FileSystem):
    """The file system of the volume, as one process syncs it."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.root)
        self._disk = disk

    def open(self) -> None:
        self.page_cache = f"boot {self._disk.boots}"

    def close(self) -> None:
        pass

    def sync(self) -> None:
        self._disk.sync()

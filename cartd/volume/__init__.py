"""The directory that holds the staged carts: all access to it is in this package.

``ROOT/ID/UID/PATH`` is a staged file, ``ROOT/ID/UID.tar`` a bundle and ``ROOT/cartuids/UID`` a
link to either; ``ROOT/incoming/ID/`` holds what is incomplete or being removed.
Changes of the disk run in threads and end before their coroutine does, cancelled or not.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.volume.bundles import Bundles
from cartd.volume.file_system import NameCollisions, check_writable, prepare
from cartd.volume.identity import VolumeIdentity
from cartd.volume.incoming import Incoming
from cartd.volume.links import Links
from cartd.volume.locks import CartLocks
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import CartRemover, DiskThreads, OrphanDirectories, evict_foreign
from cartd.volume.rooted_fs import MkdirFSCache
from cartd.volume.verify import FileFacts, FileVerifier

__all__ = ["DiskUsage", "FileFacts", "Volume"]


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes of the volume's file system."""

    total: int
    free: int
    """Free for this process."""


class Volume:
    """All operations on the directory that holds the carts, by object.

    Errors of the disk are :class:`~cartd.errors.NoSpace`, or ``OSError`` with the path below ROOT.
    While the directory is missing or is not the volume, nothing is created or removed there and no
    file counts as missing: methods raise :class:`~cartd.errors.VolumeUnavailable`.
    """

    def __init__(
        self,
        root: Path,
        threads: ThreadRunner,
        number: int | None = None,
        *,
        removal_threads: ThreadRunner | None = None,
    ) -> None:
        """``number`` is the identity of the volume; None: it is not checked.

        ``removal_threads`` remove carts; default: ``threads``.
        """
        self._threads = threads
        self._stopping = threading.Event()
        self._identity = identity = VolumeIdentity(root, number)
        self.paths = paths = VolumePaths(root)
        """Where everything is; links below ``paths.root`` must not be followed."""
        self.name_collisions = NameCollisions(paths, identity, threads)
        fs_cache = MkdirFSCache(
            root,
            check=identity.check,
            evict=partial(evict_foreign, paths),
            folds=self.name_collisions.folds,
        )
        disk = DiskThreads(root, threads, self._stopping)
        removals = DiskThreads(root, removal_threads or threads, self._stopping)
        self.incoming = Incoming(paths, identity, threads, disk, fs_cache)
        self.bundles = Bundles(paths, identity, threads, disk, fs_cache)
        self.links = Links(paths, threads, disk, fs_cache)
        self.verification = FileVerifier(paths, identity, threads)
        self.locks = CartLocks(paths, threads)
        self.removal = CartRemover(paths, identity, disk, removals, fs_cache)
        self.orphans = OrphanDirectories(paths, identity, threads, removals)

    def prepare(self) -> None:
        """Create the fixed directories and test the volume; blocks; raises ConfigError."""
        prepare(self.paths)

    def stop(self) -> None:
        """Interrupt removals: a large tree takes minutes.  The rest is removed later."""
        self._stopping.set()

    async def check(self) -> None:
        """Raises :class:`VolumeUnavailable` if the directory is not the volume now."""
        await self._threads.run(self._identity.check)

    async def check_writable(self) -> None:
        """Raises :class:`VolumeNotWritable` if no file can be written, tried with one, and
        synced."""

        def probe() -> None:
            self._identity.check()
            check_writable(self.paths)

        await uncancellable(self._threads.run(probe))

    async def free_space(self) -> int:
        """Return the bytes of the disk that are free for this process."""
        return (await self.disk_usage(self._threads)).free

    async def disk_usage(self, threads: ThreadRunner) -> DiskUsage:
        """Return the size and the free bytes of the disk, in a thread of ``threads``."""

        def probe() -> DiskUsage:
            self._identity.check()
            usage = shutil.disk_usage(self.paths.root)
            return DiskUsage(usage.total, usage.free)

        return await threads.run(probe)

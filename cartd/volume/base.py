"""Base class of the parts of the volume: paths, threads, identity, errors."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.model import Cart, CartFile
from cartd.volume.identity import Identity
from cartd.volume.incoming import PartialFile
from cartd.volume.name_collisions import CollisionFinder, Folding, detect_folding, find_collision
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import TimeSlice, TimeSliceEnded, evict_foreign
from cartd.volume.rooted_fs import MkdirFS, translate_disk_errors

log = Logger()
P = ParamSpec("P")
T = TypeVar("T")


class VolumeBase:
    """The volume at ``root`` with the identity ``number``; None: the identity is not checked."""

    def __init__(
        self,
        root: Path,
        threads: ThreadRunner,
        number: int | None = None,
        *,
        removal_threads: ThreadRunner | None = None,
    ) -> None:
        """``removal_threads`` remove staged trees and bundles; default: ``threads``."""
        self._paths = VolumePaths(root)
        self._identity = Identity(root, number)
        self._threads = threads
        self._removal_threads = removal_threads or threads
        # An entry lives only while a file of the cart is being written.
        self._cart_fs: WeakValueDictionary[int, MkdirFS] = WeakValueDictionary()
        self._stopping = threading.Event()
        self._folding: Folding | None = None

    def stop(self) -> None:
        """Interrupt removals: a large tree takes minutes.  The rest is removed later."""
        self._stopping.set()

    async def folding(self) -> Folding:
        """Return which names the volume treats as the same; detected once, with trial files."""
        if self._folding is None:
            try:
                self._folding = await self._threads.run(self._detect_folding)
            except OSError as error:
                log.warn("Cannot detect whether the volume folds names: {error}", error=error)
                return Folding()
        return self._folding

    async def collision(
        self, pages: Callable[[], AsyncIterator[Sequence[CartFile]]]
    ) -> tuple[str, str] | None:
        """Return the first two paths of a cart that are the same file on this volume.

        ``pages`` returns an iterator over the cart's files.
        """
        folding = await self.folding()
        if not folding:
            return None
        folded = CollisionFinder(folding)
        for step in (folded.scan, folded.collect):
            async for page in pages():
                await uncancellable(self._threads.run(step, [file.path for file in page]))
        return await self._threads.run(find_collision, self._paths, folded)

    def _detect_folding(self) -> Folding:
        self._identity.check()
        return detect_folding(self._paths)

    async def _change(
        self, path: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def run() -> T:
            with translate_disk_errors(path, self._paths.root):
                return work(*args, **kwargs)

        return await uncancellable(self._threads.run(run))

    async def _remove_in_slices(
        self, threads: ThreadRunner, path: Path, work: Callable[[Callable[[], bool]], T]
    ) -> T:
        """Return the result of ``work``, called again until it ends within one time slice.

        ``work`` removes files until its argument raises :class:`TimeSliceEnded`.  So concurrent
        removals share the threads fairly, and no other work waits for a large tree.
        """

        def run() -> T:
            with translate_disk_errors(path, self._paths.root):
                return work(TimeSlice(self._stopping.is_set))

        while True:
            try:
                return await uncancellable(threads.run(run))
            except TimeSliceEnded:
                continue

    def _partial(self, cart: Cart, hint: object, final: Path) -> PartialFile:
        temporary = self._paths.temporary(cart.id, hint)
        return PartialFile(temporary, final, self._fs_of(cart))

    def _fs_of(self, cart: Cart) -> MkdirFS:
        fs = self._cart_fs.get(cart.id)
        if fs is None:
            fs = self._cart_fs[cart.id] = MkdirFS(
                self._paths.root,
                check=self._identity.check,
                evict=lambda occupied: evict_foreign(self._paths, cart.id, occupied),
                folds=bool(self._folding),
            )
        return fs

    def _close_fs(self, cart_id: int) -> None:
        fs = self._cart_fs.get(cart_id)
        if fs is not None:
            fs.close()

    def _confirm_missing(
        self, read: Callable[P, T | None], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Return the result of ``read``; if that is None, check first that this is the volume."""
        found = read(*args, **kwargs)
        if found is None:
            self._identity.check()
        return found

"""What every part of the volume works with: its paths, its threads, its number."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from twisted.logger import Logger

from cartd.model import Cart, CartFile
from cartd.threads import ThreadRunner
from cartd.uncancellable import uncancellable
from cartd.volume.identity import Identity
from cartd.volume.mkdir_fs import MkdirFS
from cartd.volume.name_collisions import CollisionFinder, Folding, detect_folding, find_collision
from cartd.volume.partial import PartialFile, translate_disk_errors
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import TimeSlice, TimeSliceEnded, evict_foreign

log = Logger()
P = ParamSpec("P")
T = TypeVar("T")


class VolumeBase:
    """The volume at ``root``, known by ``number``; without one it is never away."""

    def __init__(
        self,
        root: Path,
        threads: ThreadRunner,
        number: int | None = None,
        *,
        removal_threads: ThreadRunner | None = None,
    ) -> None:
        """``removal_threads`` are the threads that remove what was whole; without them ``threads``
        do."""
        self._paths = VolumePaths(root)
        self._identity = Identity(root, number)
        self._threads = threads
        self._removal_threads = removal_threads or threads
        # For as long as a file of the cart is on its way: no cart's names are kept for ever.
        self._cart_fs: WeakValueDictionary[int, MkdirFS] = WeakValueDictionary()
        self._stopping = threading.Event()
        self._folding: Folding | None = None

    def stop(self) -> None:
        """End removals in their middle: a great tree takes minutes.  What is left goes later."""
        self._stopping.set()

    async def folding(self) -> Folding:
        """Which names are one here: tried out once, before a file is put in place."""
        if self._folding is None:
            try:
                self._folding = await self._threads.run(self._detect_folding)
            except OSError as error:
                log.warn("Whether names are one on the volume is not known: {error}", error=error)
                return Folding()
        return self._folding

    async def collision(
        self, pages: Callable[[], AsyncIterator[Sequence[CartFile]]]
    ) -> tuple[str, str] | None:
        """The first two paths of a cart that are one on this volume; ``pages`` gives its files."""
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
        """What ``work`` gives in the end, which removes until its argument raises.

        So the trees that are removed at the same time take turns, however large they are, and
        others' work in these threads waits for none of them.
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
        """What ``read`` finds; that nothing is there is believed only of the volume itself."""
        found = read(*args, **kwargs)
        if found is None:
            self._identity.check()
        return found

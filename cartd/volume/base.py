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
from cartd.volume.mkdir_fs import Directories
from cartd.volume.name_collisions import FoldedPaths, Folding, collides, try_out
from cartd.volume.partial import PartialFile, told_of
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import Slice, SliceEnded, clear_the_way

log = Logger()
P = ParamSpec("P")
T = TypeVar("T")


class Access:
    """The volume at ``root``, known by ``number``; without one it is never away."""

    def __init__(
        self,
        root: Path,
        threads: ThreadRunner,
        number: int | None = None,
        *,
        removers: ThreadRunner | None = None,
    ) -> None:
        """``removers`` are the threads that remove what was whole; without them ``threads`` do."""
        self._paths = VolumePaths(root)
        self._identity = Identity(root, number)
        self._threads = threads
        self._removers = removers or threads
        # For as long as a file of the cart is on its way: no cart's names are kept for ever.
        self._directories: WeakValueDictionary[int, Directories] = WeakValueDictionary()
        self._stopping = threading.Event()
        self._folding: Folding | None = None

    def stop(self) -> None:
        """End removals in their middle: a great tree takes minutes.  What is left goes later."""
        self._stopping.set()

    async def folding(self) -> Folding:
        """Which names are one here: tried out once, before a file is put in place."""
        if self._folding is None:
            try:
                self._folding = await self._threads.run(self._tried_out)
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
        folded = FoldedPaths(folding)
        for step in (folded.look, folded.claim):
            async for page in pages():
                await uncancellable(self._threads.run(step, [file.path for file in page]))
        return await self._threads.run(collides, self._paths, folded)

    def _tried_out(self) -> Folding:
        self._identity.check()
        return try_out(self._paths)

    async def _change(
        self, shown: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def told() -> T:
            with told_of(shown, self._paths.root):
                return work(*args, **kwargs)

        return await uncancellable(self._threads.run(told))

    async def _remove_in_slices(
        self, threads: ThreadRunner, shown: Path, work: Callable[[Callable[[], bool]], T]
    ) -> T:
        """What ``work`` gives in the end, which removes until its argument raises.

        So the trees that are removed at the same time take turns, however large they are, and
        others' work in these threads waits for none of them.
        """

        def told() -> T:
            with told_of(shown, self._paths.root):
                return work(Slice(self._stopping.is_set))

        while True:
            try:
                return await uncancellable(threads.run(told))
            except SliceEnded:
                continue

    def _partial(self, cart: Cart, hint: object, final: Path) -> PartialFile:
        temporary = self._paths.temporary(cart.id, hint)
        return PartialFile(temporary, final, self._directories_of(cart))

    def _directories_of(self, cart: Cart) -> Directories:
        directories = self._directories.get(cart.id)
        if directories is None:
            directories = self._directories[cart.id] = Directories(
                self._paths.root,
                check=self._identity.check,
                clear=lambda occupied: clear_the_way(self._paths, cart.id, occupied),
                folds=bool(self._folding),
            )
        return directories

    def _forget(self, cart_id: int) -> None:
        directories = self._directories.get(cart_id)
        if directories is not None:
            directories.close()

    def _believed(self, look: Callable[P, T | None], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What ``look`` finds; that nothing is there is believed only of the volume itself."""
        found = look(*args, **kwargs)
        if found is None:
            self._identity.check()
        return found

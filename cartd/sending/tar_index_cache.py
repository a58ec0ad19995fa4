"""Builds the index of a cart's tar from the rows of the store, and caches it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed

from cartd.deferreds.tasks import SingleFlight
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import VolumeDamaged
from cartd.model import Cart
from cartd.store import Carts
from cartd.tar.index import Shift, TarIndex, TarIndexBuilder
from cartd.tar.virtual_tar import VirtualTar

T = TypeVar("T")

PAGE_SIZE = 5000
"""Members read from the store at a time."""
MAX_BYTES = 64 * 2**20
"""Of all indexes together: enough for a million files with paths of 30 characters."""
MAX_SHIFTS_PER_INDEX = 8
"""Cached shifts of one index; the least recently used is evicted."""
LARGE_CART_FILES = 50_000
"""Carts with this many files or more are indexed one at a time."""
SMALL_CONCURRENCY = 16
"""Indexes of smaller carts that are built concurrently; together they need 64 MiB at most."""

Variant = tuple[bool, int]
"""See :meth:`cartd.tar.index.Lengths.variant`."""


@dataclass(slots=True)
class _Entry:
    index: TarIndex
    shifts: OrderedDict[Variant, Shift] = field(default_factory=OrderedDict)
    size: int = 0
    """Bytes of memory, as of the last :meth:`update_size`."""

    def update_size(self) -> int:
        """Recount ``size``; return by how much it has grown."""
        before = self.size
        sums = sum(getsizeof(shift.sums) for shift in self.shifts.values())
        self.size = self.index.weight + sums
        return self.size - before


class TarIndexCache:
    """An LRU cache of tar indexes, as clients request many ranges of one tar.

    One index serves all names under which a cart is downloaded.  The last one is cached whatever
    its size, and an index that a download holds is never built again.  Concurrent requests for one
    index share one build.
    """

    def __init__(self, carts: Carts, threads: ThreadRunner) -> None:
        self._carts = carts
        self._threads = threads
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._bytes = 0
        self._live: WeakValueDictionary[int, TarIndex] = WeakValueDictionary()
        """By cart id, the indexes that are in use, evicted ones included."""
        self._builds: dict[tuple[int, Variant | None], SingleFlight[Any]] = {}
        self._small = DeferredSemaphore(SMALL_CONCURRENCY)
        self._large = DeferredSemaphore(1)

    async def get(self, cart: Cart) -> TarIndex:
        """Return the index of a ready cart.

        :raises VolumeDamaged: the store does not know a size.
        """
        return (await self._get_entry(cart)).index

    async def tar_below(self, cart: Cart, top: str) -> VirtualTar:
        """Return the tar of a ready cart with the top folder ``top``.

        :raises VolumeDamaged: the store does not know a size.
        """
        entry = await self._get_entry(cart)
        variant = entry.index.lengths.variant(top)
        if variant not in entry.shifts:
            shift, first = await self._single_flight(
                (cart.id, variant),
                lambda: self._limited(cart, lambda: self._shift(entry.index, top)),
            )
            if not first:
                return VirtualTar(top, entry.index, shift)
            entry.shifts[variant] = shift
            if len(entry.shifts) > MAX_SHIFTS_PER_INDEX:
                entry.shifts.popitem(last=False)
            if self._entries.get(cart.id) is entry:
                self._bytes += entry.update_size()
                self._evict_to_limit()
        entry.shifts.move_to_end(variant)
        return VirtualTar(top, entry.index, entry.shifts[variant])

    async def build(self, cart: Cart) -> TarIndex:
        """Build the index of a cart whose files' sizes are all known; it is not cached.

        :raises VolumeDamaged: the store does not know a size.
        """
        return await self._limited(cart, lambda: self._build(cart))

    def put(self, cart_id: int, index: TarIndex) -> None:
        """Cache the index of a cart that is about to become ready."""
        self.invalidate(cart_id)
        self._put(cart_id, index)

    def invalidate(self, cart_id: int) -> None:
        """Forget the index of a cart that is restaged or deleted."""
        for key in [key for key in self._builds if key[0] == cart_id]:
            del self._builds[key]
        self._drop(cart_id)
        self._live.pop(cart_id, None)

    async def _get_entry(self, cart: Cart) -> _Entry:
        entry = self._entries.get(cart.id)
        index = self._live.get(cart.id) if entry is None else entry.index
        if index is not None and (cart.tar is None or cart.tar.digest == index.digest):
            return self._put(cart.id, index)
        # None is cached, or another process has restaged the cart.
        built, first = await self._single_flight((cart.id, None), lambda: self.build(cart))
        return self._put(cart.id, built) if first else self._entries.get(cart.id) or _Entry(built)

    async def _single_flight(
        self, key: tuple[int, Variant | None], begin: Callable[[], Coroutine[Any, Any, T]]
    ) -> tuple[T, bool]:
        """Return the result of ``begin``, which runs once for all concurrent callers.

        The second value is true for one caller only: that one has to cache the result.
        """
        job: SingleFlight[T] | None = self._builds.get(key)
        if job is None or not job.in_progress:
            job = self._builds[key] = SingleFlight(begin)
        try:
            result = await job.result()
        finally:
            # True for the first caller to resume, unless the index was invalidated meanwhile.
            first = not job.in_progress and self._builds.get(key) is job
            if first:
                del self._builds[key]
        return result, first

    async def _limited(self, cart: Cart, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work`` once the limit for carts of that size allows it."""
        semaphore = self._small if cart.files_total < LARGE_CART_FILES else self._large
        await semaphore.acquire()
        try:
            return await work()
        finally:
            semaphore.release()

    async def _build(self, cart: Cart) -> TarIndex:
        builder = TarIndexBuilder()
        added: Deferred[Any] = succeed(None)
        found = 0
        for first in range(0, cart.files_total, PAGE_SIZE):
            members = await self._carts.members(cart.id, range(first, first + PAGE_SIZE))
            await added
            found += len(members.paths)
            # Awaited after the next page was read, so that the database reads meanwhile.
            added = self._threads.run(builder.add, members)
        await added
        if found != cart.files_total - cart.files_failed:
            raise VolumeDamaged("The sizes of some files are not known, or the cart has changed")
        if found <= PAGE_SIZE:
            return builder.index()
        return await self._threads.run(builder.index)

    async def _shift(self, index: TarIndex, top: str) -> Shift:
        if len(index.long.members) <= PAGE_SIZE:
            return index.shift(top)
        return await self._threads.run(index.shift, top)

    def _put(self, cart_id: int, index: TarIndex) -> _Entry:
        entry = self._entries.get(cart_id)
        if entry is None or entry.index is not index:
            self._drop(cart_id)
            entry = self._entries[cart_id] = _Entry(index)
            self._live[cart_id] = index
            self._bytes += entry.update_size()
        self._entries.move_to_end(cart_id)
        self._evict_to_limit()
        return entry

    def _evict_to_limit(self) -> None:
        while len(self._entries) > 1 and self._bytes > MAX_BYTES:
            self._drop(next(iter(self._entries)))

    def _drop(self, cart_id: int) -> None:
        if (entry := self._entries.pop(cart_id, None)) is not None:
            self._bytes -= entry.size

"""From a cart's rows in the store to the index of its tar, and to the tar below one name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredSemaphore, succeed

from cartd.errors import VolumeDamaged
from cartd.model import Cart
from cartd.single_flight import SingleFlight
from cartd.store import Store
from cartd.tar.index import Shift, TarIndex
from cartd.tar.index_builder import TarIndexBuilder
from cartd.tar.virtual_tar import VirtualTar
from cartd.threads import ThreadRunner

T = TypeVar("T")

PAGE_SIZE = 5000
"""Members read at once."""
MAX_BYTES = 64 * 2**20
"""Of all indexes together: of a million files with paths of 30 characters."""
MAX_SHIFTS_PER_INDEX = 8
"""Of one index."""
LARGE_CART_FILES = 50_000
"""Files of a cart from which on one index is built at a time."""
SMALL_CONCURRENCY = 16
"""Indexes of other carts that are built at once: they have some 64 MiB at most."""

Variant = tuple[bool, int]
"""See :meth:`cartd.tar.lengths.Lengths.variant`."""


@dataclass(slots=True)
class _Entry:
    index: TarIndex
    shifts: OrderedDict[Variant, Shift] = field(default_factory=OrderedDict)
    size: int = 0
    """Bytes of memory, as counted last."""

    def update_size(self) -> int:
        """Count anew; by how much it has grown."""
        before = self.size
        sums = sum(getsizeof(shift.sums) for shift in self.shifts.values())
        self.size = self.index.weight + sums
        return self.size - before


class TarIndexCache:
    """Builds the tars' indexes, and keeps the last ones: many ranges are asked of one tar.

    One index serves all names under which a cart is downloaded.  The last one is kept in any case,
    and so is what a download holds.  Those who ask for the same while it is built wait together.
    """

    def __init__(self, store: Store, threads: ThreadRunner) -> None:
        self._store = store
        self._threads = threads
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._bytes = 0
        self._live: WeakValueDictionary[int, TarIndex] = WeakValueDictionary()
        """By cart, the indexes that are in use, even if they were evicted."""
        self._builds: dict[tuple[int, Variant | None], SingleFlight[Any]] = {}
        self._small = DeferredSemaphore(SMALL_CONCURRENCY)
        self._large = DeferredSemaphore(1)

    async def get(self, cart: Cart) -> TarIndex:
        """The index of a ready cart.

        :raises VolumeDamaged: the store does not know a size.
        """
        return (await self._get_entry(cart)).index

    async def tar_below(self, cart: Cart, top: str) -> VirtualTar:
        """The tar of a ready cart below the folder ``top``.

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
        """The index of a cart whose files' sizes are all known; it is not cached.

        :raises VolumeDamaged: the store does not know a size.
        """
        return await self._limited(cart, lambda: self._build(cart))

    def put(self, cart_id: int, index: TarIndex) -> None:
        """Have this one for what comes: the cart is about to be ready."""
        self.invalidate(cart_id)
        self._put(cart_id, index)

    def invalidate(self, cart_id: int) -> None:
        """Drop what is known of a cart that goes back to staging or away."""
        for key in [key for key in self._builds if key[0] == cart_id]:
            del self._builds[key]
        self._drop(cart_id)
        self._live.pop(cart_id, None)

    async def _get_entry(self, cart: Cart) -> _Entry:
        entry = self._entries.get(cart.id)
        index = self._live.get(cart.id) if entry is None else entry.index
        if index is not None and (cart.tar is None or cart.tar.digest == index.digest):
            return self._put(cart.id, index)
        # There is none, or another process has staged the cart anew.
        built, first = await self._single_flight((cart.id, None), lambda: self.build(cart))
        return self._put(cart.id, built) if first else self._entries.get(cart.id) or _Entry(built)

    async def _single_flight(
        self, key: tuple[int, Variant | None], begin: Callable[[], Coroutine[Any, Any, T]]
    ) -> tuple[T, bool]:
        """What ``begin`` gives, once for all who ask meanwhile.

        And whether this is the first of them to go on, and the result is to be cached.
        """
        job: SingleFlight[T] | None = self._builds.get(key)
        if job is None or not job.in_progress:
            job = self._builds[key] = SingleFlight(begin)
        try:
            result = await job.result()
        finally:
            # True for the first who goes on after its end, unless it was to be forgotten.
            first = not job.in_progress and self._builds.get(key) is job
            if first:
                del self._builds[key]
        return result, first

    async def _limited(self, cart: Cart, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` for that cart, when not too much of its kind is under way."""
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
            members = await self._store.members(cart.id, range(first, first + PAGE_SIZE))
            await added
            found += len(members.paths)
            # Not waited for until the next page is there: the database reads it meanwhile.
            added = self._threads.run(builder.add, members)
        await added
        if found < cart.files_total:
            raise VolumeDamaged("The sizes of some files are not known")
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

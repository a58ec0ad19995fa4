"""Builds the index of a cart's tar, or of its bag, from the rows of the store, and caches it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from msgspec.structs import replace
from twisted.internet.defer import Deferred, DeferredSemaphore, succeed

from cartd.deferreds.tasks import SingleFlight
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import Unavailable, VolumeDamaged
from cartd.model import Cart, CartFile, CartFormat, FileStatus
from cartd.store import Carts, Statuses
from cartd.tar.bag import (
    ALGORITHMS,
    BagFacts,
    BagInfo,
    BagLayout,
    common_algorithm,
    recorded_facts,
    spellings,
)
from cartd.tar.index import Shift, TarIndex, TarIndexBuilder
from cartd.tar.layout import Layout, PlainLayout, Text
from cartd.tar.members import Members
from cartd.tar.missing import missing_json
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
UNKNOWN_SUM = "0" * 128
"""Stands for a hash by the longest of the algorithms."""
SMALL_CONCURRENCY = 16
"""Indexes of smaller carts that are built concurrently; together they need 64 MiB at most."""

_IS_CHANGED = "The cart is being changed; try again"

Variant = tuple[bool, int]
"""See :meth:`cartd.tar.index.Lengths.variant`."""
Key = tuple[int, CartFormat]
"""Cart id and format of an index."""
Read = Callable[[range], Coroutine[Any, Any, Members]]
"""Returns the members at the positions."""


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

    One index serves all names under which a cart is downloaded in one format.  The last one is
    cached whatever its size, and an index that a download holds is never built again.  Concurrent
    requests for one index share one build.
    """

    def __init__(
        self, carts: Carts, statuses: Statuses, threads: ThreadRunner, *, organization: str = ""
    ) -> None:
        """``organization``: what bags name as their source; empty for none."""
        self._carts = carts
        self._statuses = statuses
        self._threads = threads
        self._organization = organization
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0
        self._live: WeakValueDictionary[Key, TarIndex] = WeakValueDictionary()
        """The indexes that are in use, evicted ones included."""
        self._builds: dict[tuple[Key, Variant | None], SingleFlight[Any]] = {}
        self._small = DeferredSemaphore(SMALL_CONCURRENCY)
        self._large = DeferredSemaphore(1)

    async def get(self, cart: Cart, format_: CartFormat = CartFormat.TAR) -> TarIndex:
        """Return the index of a ready cart.

        :raises NoCommonHash: the cart cannot be a bag.
        :raises VolumeDamaged: the store does not know a size.
        """
        return (await self._get_entry(cart, format_)).index

    async def tar_below(
        self, cart: Cart, top: str, format_: CartFormat = CartFormat.TAR
    ) -> VirtualTar:
        """Return the tar of a ready cart with the top folder ``top``; raises as :meth:`get`."""
        key = cart.id, format_
        entry = await self._get_entry(cart, format_)
        variant = entry.index.lengths.variant(top)
        if variant not in entry.shifts:
            shift, first = await self._single_flight(
                (key, variant),
                lambda: self._limited(cart, lambda: self._shift(entry.index, top)),
            )
            if not first:
                return VirtualTar(top, entry.index, shift)
            entry.shifts[variant] = shift
            if len(entry.shifts) > MAX_SHIFTS_PER_INDEX:
                entry.shifts.popitem(last=False)
            if self._entries.get(key) is entry:
                self._bytes += entry.update_size()
                self._evict_to_limit()
        entry.shifts.move_to_end(variant)
        return VirtualTar(top, entry.index, entry.shifts[variant])

    async def build(self, cart: Cart, format_: CartFormat = CartFormat.TAR) -> TarIndex:
        """Build the index of a cart, all of whose files are staged or failed; it is not cached.

        Raises as :meth:`get`.
        """
        return await self._limited(cart, lambda: self._build_of(cart, format_))

    async def length_to_reserve(self, cart: Cart) -> int:
        """Return the bytes that the tar of a bundled cart takes at most, once its files are staged.

        :raises VolumeDamaged: the store does not know a size.
        """
        if cart.format is CartFormat.TAR:
            index = await self.build(cart)
        else:
            index = await self._limited(cart, lambda: self._build_unhashed(cart))
        return index.lengths.length(cart.uid)

    def bag_facts(self, cart: Cart) -> BagFacts | None:
        """Return what is recorded about the bag of a ready cart; see :func:`recorded_facts`."""
        return recorded_facts(cart, self._organization)

    def put(self, cart_id: int, index: TarIndex, format_: CartFormat = CartFormat.TAR) -> None:
        """Cache the index of a cart that is about to become ready."""
        self.invalidate(cart_id)
        self._put((cart_id, format_), index)

    def invalidate(self, cart_id: int) -> None:
        """Forget the indexes of a cart that is restaged or deleted."""
        for build in [build for build in self._builds if build[0][0] == cart_id]:
            del self._builds[build]
        for format_ in CartFormat:
            self._drop((cart_id, format_))
            self._live.pop((cart_id, format_), None)

    async def _get_entry(self, cart: Cart, format_: CartFormat) -> _Entry:
        key = cart.id, format_
        entry = self._entries.get(key)
        index = self._live.get(key) if entry is None else entry.index
        if index is not None and self._is_current(cart, format_, index):
            return self._put(key, index)
        # None is cached, or another process has restaged the cart.
        built, first = await self._single_flight((key, None), lambda: self.build(cart, format_))
        return self._put(key, built) if first else self._entries.get(key) or _Entry(built)

    def _is_current(self, cart: Cart, format_: CartFormat, index: TarIndex) -> bool:
        if cart.tar is not None and cart.tar.digest != index.source:
            return False
        facts = self.bag_facts(cart) if format_ is CartFormat.BAG else None
        return facts is None or facts.digest == index.digest

    async def _single_flight(
        self, key: tuple[Key, Variant | None], begin: Callable[[], Coroutine[Any, Any, T]]
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

    async def _build_of(self, cart: Cart, format_: CartFormat) -> TarIndex:
        missing = await self._missing(cart)
        if format_ is CartFormat.TAR:
            created = max(int(cart.created // 1), 0)
            plain = PlainLayout() if missing is None else PlainLayout(missing, created)
            return await self._build(cart, plain, lambda page: self._carts.members(cart.id, page))
        kinds = await self._statuses.hash_types(cart.id)
        algorithm = common_algorithm(kinds)
        names = spellings(kinds, algorithm)
        bag = BagLayout(await self._bag_info(cart), algorithm, missing)
        return await self._build(cart, bag, lambda page: self._bag_members(cart, page, names))

    async def _build_unhashed(self, cart: Cart) -> TarIndex:
        """Build an index of the longest bag that a cart may have, whose hashes are not known."""
        longest = ALGORITHMS[0]
        bag = BagLayout(await self._bag_info(cart), longest)

        async def read(page: range) -> Members:
            members = await self._carts.members(cart.id, page)
            return replace(members, sums=[UNKNOWN_SUM] * len(members.paths))

        return await self._build(cart, bag, read)

    async def _bag_info(self, cart: Cart) -> BagInfo:
        _, details = (await self._statuses.details([cart.id]))[cart.id]
        facts = self.bag_facts(cart)  # those of a bag on the volume may be of another setting
        organization = self._organization if facts is None else facts.organization
        return BagInfo(cart.uid, cart.created, details.name, organization)

    async def _bag_members(self, cart: Cart, page: range, names: Collection[str]) -> Members:
        members = await self._carts.bag_members(cart.id, page, names)
        if not all(members.sums):
            raise Unavailable(_IS_CHANGED)
        return members

    async def _missing(self, cart: Cart) -> Text | None:
        """Return the list of the failed files of a partial cart, whose number is limited."""
        failed: list[CartFile] = []
        while len(failed) < cart.files_failed:
            after = failed[-1].position if failed else -1
            page = await self._statuses.files(
                cart.id, status=FileStatus.ERROR, after=after, limit=PAGE_SIZE
            )
            if not page:
                raise Unavailable(_IS_CHANGED)
            failed += page
        return Text(missing_json(cart.uid, failed)) if failed else None

    async def _build(self, cart: Cart, layout: Layout, read: Read) -> TarIndex:
        builder = TarIndexBuilder(layout)
        added: Deferred[Any] = succeed(None)
        found = 0
        for first in range(0, cart.files_total, PAGE_SIZE):
            page = await read(range(first, first + PAGE_SIZE))
            await added
            found += len(page.paths)
            # Awaited after the next page was read, so that the database reads meanwhile.
            added = self._threads.run(builder.add, page)
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

    def _put(self, key: Key, index: TarIndex) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or entry.index is not index:
            self._drop(key)
            entry = self._entries[key] = _Entry(index)
            self._live[key] = index
            self._bytes += entry.update_size()
        self._entries.move_to_end(key)
        self._evict_to_limit()
        return entry

    def _evict_to_limit(self) -> None:
        while len(self._entries) > 1 and self._bytes > MAX_BYTES:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._bytes -= entry.size

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
from cartd.shared_job import SharedJob
from cartd.store import Store
from cartd.tar.index import Shift, TarIndex
from cartd.tar.index_builder import Layout
from cartd.tar.virtual_tar import Bundle
from cartd.threads import RunsInThread

T = TypeVar("T")

PAGE = 5000
"""Members read at once."""
MOST_BYTES_KEPT = 64 * 2**20
"""Of all indexes together: of a million files with paths of 30 characters."""
MOST_SHIFTS_KEPT = 8
"""Of one index."""
LARGE = 50_000
"""Files of a cart from which on one index is built at a time."""
SMALL_AT_ONCE = 16
"""Indexes of other carts that are built at once: they have some 64 MiB at most."""

Variant = tuple[bool, int]
"""See :meth:`cartd.tar.lengths.Lengths.variant`."""


@dataclass(slots=True)
class _Kept:
    index: TarIndex
    shifts: OrderedDict[Variant, Shift] = field(default_factory=OrderedDict)
    weight: int = 0
    """Bytes of memory, as counted last."""

    def weigh(self) -> int:
        """Count anew; by how much it has grown."""
        before = self.weight
        sums = sum(getsizeof(shift.sums) for shift in self.shifts.values())
        self.weight = self.index.weight + sums
        return self.weight - before


class TarIndexCache:
    """Builds the tars' indexes, and keeps the last ones: many ranges are asked of one tar.

    One index serves all names under which a cart is downloaded.  The last one is kept in any case,
    and so is what a download holds.  Those who ask for the same while it is built wait together.
    """

    def __init__(self, store: Store, threads: RunsInThread) -> None:
        self._store = store
        self._threads = threads
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._bytes_kept = 0
        self._in_use: WeakValueDictionary[int, TarIndex] = WeakValueDictionary()
        """By cart, what has been kept and is held by somebody."""
        self._building: dict[tuple[int, Variant | None], SharedJob[Any]] = {}
        self._small = DeferredSemaphore(SMALL_AT_ONCE)
        self._large = DeferredSemaphore(1)

    async def of_ready(self, cart: Cart) -> TarIndex:
        """The index of a ready cart.

        :raises VolumeDamaged: the store does not know a size.
        """
        return (await self._of_ready(cart)).index

    async def below(self, cart: Cart, top: str) -> Bundle:
        """The tar of a ready cart below the folder ``top``.

        :raises VolumeDamaged: the store does not know a size.
        """
        kept = await self._of_ready(cart)
        variant = kept.index.lengths.variant(top)
        if variant not in kept.shifts:
            shift, first = await self._shared(
                (cart.id, variant),
                lambda: self._limited(cart, lambda: self._shift(kept.index, top)),
            )
            if not first:
                return Bundle(top, kept.index, shift)
            kept.shifts[variant] = shift
            if len(kept.shifts) > MOST_SHIFTS_KEPT:
                kept.shifts.popitem(last=False)
            if self._kept.get(cart.id) is kept:
                self._bytes_kept += kept.weigh()
                self._keep_to_the_limit()
        kept.shifts.move_to_end(variant)
        return Bundle(top, kept.index, kept.shifts[variant])

    async def build(self, cart: Cart) -> TarIndex:
        """The index of a cart whose files' sizes are all known; it is not kept.

        :raises VolumeDamaged: the store does not know a size.
        """
        return await self._limited(cart, lambda: self._build(cart))

    def keep(self, cart_id: int, index: TarIndex) -> None:
        """Have this one for what comes: the cart is about to be ready."""
        self.forget(cart_id)
        self._keep(cart_id, index)

    def forget(self, cart_id: int) -> None:
        """Drop what is known of a cart that goes back to staging or away."""
        for key in [key for key in self._building if key[0] == cart_id]:
            del self._building[key]
        self._drop(cart_id)
        self._in_use.pop(cart_id, None)

    async def _of_ready(self, cart: Cart) -> _Kept:
        kept = self._kept.get(cart.id)
        index = self._in_use.get(cart.id) if kept is None else kept.index
        if index is not None and (cart.tar is None or cart.tar.digest == index.digest):
            return self._keep(cart.id, index)
        # There is none, or another process has staged the cart anew.
        built, first = await self._shared((cart.id, None), lambda: self.build(cart))
        return self._keep(cart.id, built) if first else self._kept.get(cart.id) or _Kept(built)

    async def _shared(
        self, key: tuple[int, Variant | None], begin: Callable[[], Coroutine[Any, Any, T]]
    ) -> tuple[T, bool]:
        """What ``begin`` gives, once for all who ask meanwhile.

        And whether this is the first of them to go on, and the result is to be kept.
        """
        job: SharedJob[T] | None = self._building.get(key)
        if job is None or not job.open:
            job = self._building[key] = SharedJob(begin)
        try:
            result = await job.result()
        finally:
            # True for the first who goes on after its end, unless it was to be forgotten.
            first = not job.open and self._building.get(key) is job
            if first:
                del self._building[key]
        return result, first

    async def _limited(self, cart: Cart, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` for that cart, when not too much of its kind is under way."""
        places = self._small if cart.files_total < LARGE else self._large
        await places.acquire()
        try:
            return await work()
        finally:
            places.release()

    async def _build(self, cart: Cart) -> TarIndex:
        layout = Layout()
        laid_out: Deferred[Any] = succeed(None)
        found = 0
        for first in range(0, cart.files_total, PAGE):
            members = await self._store.members(cart.id, range(first, first + PAGE))
            await laid_out
            found += len(members.paths)
            # Not waited for until the next page is there: the database reads it meanwhile.
            laid_out = self._threads.run(layout.add, members)
        await laid_out
        if found < cart.files_total:
            raise VolumeDamaged("The sizes of some files are not known")
        if found <= PAGE:
            return layout.index()
        return await self._threads.run(layout.index)

    async def _shift(self, index: TarIndex, top: str) -> Shift:
        if len(index.long.members) <= PAGE:
            return index.shift(top)
        return await self._threads.run(index.shift, top)

    def _keep(self, cart_id: int, index: TarIndex) -> _Kept:
        kept = self._kept.get(cart_id)
        if kept is None or kept.index is not index:
            self._drop(cart_id)
            kept = self._kept[cart_id] = _Kept(index)
            self._in_use[cart_id] = index
            self._bytes_kept += kept.weigh()
        self._kept.move_to_end(cart_id)
        self._keep_to_the_limit()
        return kept

    def _keep_to_the_limit(self) -> None:
        while len(self._kept) > 1 and self._bytes_kept > MOST_BYTES_KEPT:
            self._drop(next(iter(self._kept)))

    def _drop(self, cart_id: int) -> None:
        if (kept := self._kept.pop(cart_id, None)) is not None:
            self._bytes_kept -= kept.weight

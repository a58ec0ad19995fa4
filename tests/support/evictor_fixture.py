"""An evictor with a store, and a disk whose free space the test sets."""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.task import Clock

from cartd.carts.delete import CannotRemove
from cartd.carts.download import AccessTimes, Pins
from cartd.eviction.evictor import Evictor, SpaceRules
from cartd.model import Cart
from cartd.store import Store


@dataclass
class Disk:
    """The disk as the evictor sees it; files of ``unremovable`` carts cannot be removed."""

    store: Store
    free: int
    incoming_bytes: int = 0
    unremovable: set[str] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    pins: Pins = field(default_factory=Pins)
    access_times: AccessTimes = field(default_factory=AccessTimes)
    in_use: set[str] = field(default_factory=set)
    quota: int | None = None
    meanwhile: list[Coroutine[Any, Any, None]] = field(default_factory=list)
    """Coroutines of other processes; one is run at each check of the disk."""

    async def evict(self, cart: Cart) -> int:
        if not await self.store.removals.begin_eviction(cart, "token"):
            return 0
        self.tried.append(cart.uid)
        if cart.uid in self.unremovable:
            await self.store.removals.end_eviction(cart.id, "token")
            raise CannotRemove(cart, "Read-only file system")
        await self.store.removals.mark_deleted(cart.id, 50)
        self.deleted.append(cart.uid)
        return await self.store.removals.record_removed(cart.id, 50)

    async def in_use_of(self, cart_ids: Collection[int]) -> set[int]:
        return {
            cart.id for cart in await self.store.carts.active() if cart.uid in self.in_use
        } & set(cart_ids)

    async def sweep(self) -> None:
        for cart in [
            await self.store.carts.cart(cart_id)
            for cart_id in await self.store.removals.pending_removal()
        ]:
            if cart is not None and cart.uid not in self.unremovable:
                await self.store.removals.record_removed(cart.id, 50)

    def evictor(self) -> Evictor:
        async def free() -> int:
            if self.meanwhile:
                await self.meanwhile.pop(0)
            return self.free

        async def incoming_bytes() -> int:
            return self.incoming_bytes

        return Evictor(
            self.store,
            self.pins,
            self.access_times,
            SpaceRules(quota=self.quota, reserve=0, eviction_enabled=True, buffer_time=0),
            free_bytes=free,
            incoming_bytes=incoming_bytes,
            in_use=self.in_use_of,
            evict=self.evict,
            sweep=self.sweep,
            now=lambda: 50.0,
            monotonic=self.clock.seconds,
        )


async def reserve(evictor: Evictor, cart: Cart, size: int) -> None:
    await evictor.reserve(cart, "me", bytes_total=size, volume_bytes=size)

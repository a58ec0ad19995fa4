"""The state of the whole service, for administrators."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cartd.model import CartStatus
from cartd.status.health import Health, HealthDocument
from cartd.store import Store
from cartd.volume import DiskUsage

DAY = 86400.0
SLOT = 3600.0
"""Seconds that one sum of :class:`LastDay` covers."""


class LastDay:
    """Number and bytes of what happened in the last 24 hours, in this process, by the hour."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._slots: deque[tuple[float, int, int]] = deque()

    def record(self, size: int) -> None:
        """Record one event of ``size`` bytes."""
        slot = self._now() // SLOT * SLOT
        _, number, total = self._slots.pop() if self._is_current(slot) else (slot, 0, 0)
        self._slots.append((slot, number + 1, total + size))
        self._forget()

    def totals(self) -> tuple[int, int]:
        """Return number and bytes."""
        self._forget()
        return sum(slot[1] for slot in self._slots), sum(slot[2] for slot in self._slots)

    def _is_current(self, slot: float) -> bool:
        return bool(self._slots) and self._slots[-1][0] == slot

    def _forget(self) -> None:
        while self._slots and self._slots[0][0] <= self._now() - DAY - SLOT:
            self._slots.popleft()


@dataclass(frozen=True, slots=True)
class OwnerUsage:
    """The carts of one owner, by status."""

    owner: str | None
    carts: dict[CartStatus, int]
    bytes: int
    """On the volume; what several carts share counts for one of them."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the service."""

    health: HealthDocument
    disk: DiskUsage | None
    """None while it is unknown."""
    used: int
    """Bytes that all carts occupy."""
    reserved: int
    """Bytes that are reserved for carts and not written yet."""
    quota: int | None
    reserve: int
    owners: list[OwnerUsage]
    """Those with most bytes."""
    downloads: int
    evicted: tuple[int, int]
    """Number of carts and bytes, of the last day, by this process."""
    archive_url: str


class Overviews:
    """Collects the state of the service."""

    def __init__(
        self,
        store: Store,
        health: Health,
        *,
        quota: int | None,
        reserve: int,
        archive_url: str,
        downloads: Callable[[], int],
        evicted: Callable[[], tuple[int, int]],
    ) -> None:
        self._store = store
        self._health = health
        self._quota = quota
        self._reserve = reserve
        self._archive_url = archive_url
        self._downloads = downloads
        self._evicted = evicted

    async def collect(self) -> Overview:
        """Return the present state.

        :raises Unavailable: the database cannot be used.
        """
        occupied, unwritten = await self._store.space.usage()
        owners: dict[str | None, dict[CartStatus, int]] = {}
        sizes: dict[str | None, int] = {}
        for owner, status, carts, size in await self._store.space.by_owner():
            owners.setdefault(owner, {})[status] = carts
            sizes[owner] = sizes.get(owner, 0) + size
        return Overview(
            health=self._health.document(),
            disk=self._health.volume.usage,
            used=occupied - unwritten,
            reserved=unwritten,
            quota=self._quota,
            reserve=self._reserve,
            owners=[
                OwnerUsage(owner, carts, sizes[owner])
                for owner, carts in sorted(owners.items(), key=lambda item: -sizes[item[0]])
            ],
            downloads=self._downloads(),
            evicted=self._evicted(),
            archive_url=self._archive_url,
        )

"""What every staging of a cart works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from cartd.archive import Archive
from cartd.model import Cart
from cartd.outage import Outage
from cartd.patience import Patience
from cartd.plans import Plans
from cartd.store import Store
from cartd.tolerance import Tolerance
from cartd.volume import Volume


class Reserves(Protocol):
    """Promises room on the volume to a cart, or raises NoSpace."""

    def __call__(
        self, cart: Cart, holder: str, *, bytes_total: int, volume_bytes: int
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What every staging works with."""

    store: Store
    volume: Volume
    archive: Archive
    reserve: Reserves
    plans: Plans
    outage: Outage
    tolerance: Tolerance
    patience: Patience
    clock: IReactorTime
    now: Callable[[], float]
    """Unix time."""
    carts_at_once: Callable[[], int]
    """How many carts are being staged now: they share pages, windows and turns."""

    def share(self, whole: int) -> int:
        """The part of ``whole`` that one of the carts in staging has; two at least."""
        return max(whole // max(self.carts_at_once(), 1), 2)

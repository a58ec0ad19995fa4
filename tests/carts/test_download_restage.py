"""Restaging of carts that a download has found damaged."""

from __future__ import annotations

import gc
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from cartd.carts.download import AccessTimes, Downloads, NotReady, Pins
from cartd.model import Cart, CartStatus
from tests.support.volume_parts import logged, result_of

CART = Cart(1, "mine", CartStatus.READY, 0, 0, 0)


class Slow:
    """A repair that is interrupted by a stop of the service."""

    def __init__(self) -> None:
        self.asked = 0

    async def restage(self, _cart: Cart, *, unreadable: str | None) -> None:
        self.asked += 1
        await Deferred()


def test_a_stop_cancels_restaging_silently() -> None:
    repair, unused = Slow(), cast(Any, None)
    clock = Clock()
    downloads = Downloads(
        unused, unused, unused, Pins(), AccessTimes(), cast(Any, repair), clock, clock.seconds
    )
    results: list[object] = []
    for _ in range(2):
        downloads.restage(CART).addCallback(results.append)
    with logged() as events:
        result_of(downloads.stop())
        gc.collect()
    assert [type(one) for one in results] == [NotReady, NotReady]
    assert (repair.asked, events) == (1, [])

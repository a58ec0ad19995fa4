"""Eviction policy: how many bytes must be freed, and which carts to evict; pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cartd.model import EvictionCandidate, SharedBytes


def choose(
    candidates: Iterable[EvictionCandidate],
    *,
    needed: int,
    now: float,
    buffer_time: float,
    shared_bytes: Collection[SharedBytes] = (),
) -> list[EvictionCandidate]:
    """Return the carts to evict, in that order, so that at least ``needed`` bytes become free.

    Least recently used carts come first, equal times by id.  A cart is evictable once its last use
    is ``buffer_time`` seconds ago; a time in the future (a clock was set back) counts as now.
    Carts whose eviction frees nothing are left out.  If all evictable carts are not enough, all are
    returned: the caller compares (:func:`freed`).
    """
    may_go = (one for one in candidates if max(now - one.used, 0) >= buffer_time)
    order = sorted(may_go, key=lambda one: (one.used, one.cart_id))
    chosen: list[EvictionCandidate] = []
    missing = needed
    for candidate, gain in zip(order, _gains(order, shared_bytes), strict=True):
        if missing <= 0:
            break
        chosen.append(candidate)
        missing -= gain
    return _without_useless(chosen, shared_bytes)


def freed(chosen: Iterable[EvictionCandidate], shared_bytes: Collection[SharedBytes] = ()) -> int:
    """Return the bytes that become free when all of ``chosen`` are evicted."""
    return sum(_gains(list(chosen), shared_bytes))


def _gains(order: list[EvictionCandidate], shared_bytes: Collection[SharedBytes]) -> list[int]:
    """Return what evicting each cart frees, after those before it in ``order``."""
    order_of = {one.cart_id: number for number, one in enumerate(order)}
    gains = [one.size for one in order]
    for shared in shared_bytes:
        if shared.owner in order_of:
            gains[order_of[shared.owner]] -= shared.size
            if shared.links <= order_of.keys():
                gains[max(order_of[cart_id] for cart_id in shared.holders)] += shared.size
    return gains


def _without_useless(
    chosen: list[EvictionCandidate], shared_bytes: Collection[SharedBytes]
) -> list[EvictionCandidate]:
    """Return those of ``chosen`` that own bytes alone, or share them only with others of them."""
    evicted = {one.cart_id for one in chosen}
    sole_bytes = {one.cart_id: one.size for one in chosen}
    useful: set[int] = set()
    for shared in shared_bytes:
        if shared.owner in evicted:
            sole_bytes[shared.owner] -= shared.size
        if shared.size and shared.holders <= evicted:
            useful |= shared.holders
    return [one for one in chosen if sole_bytes[one.cart_id] > 0 or one.cart_id in useful]


def shortfall(
    *, wanted: int, free: int, promised: int, used: int, quota: int | None, reserve: int
) -> int:
    """Return the bytes to free before ``wanted`` more can be reserved; zero or less: they fit.

    Two limits apply, and the tighter one decides:

    * ``used``, all that carts occupy or have reserved, plus ``wanted`` must not exceed ``quota``;
    * the disk must keep ``reserve`` bytes free once all reservations are used: of its ``free``
      bytes, ``promised`` are still to be written by carts in staging.

    A disk with 100 free bytes, 30 of them promised and 20 in reserve, has space for 50::

        shortfall(wanted=60, free=100, promised=30, used=500, quota=None, reserve=20) == 10

    With a quota of 520, of which 500 are used, 40 of those 60 bytes are missing.  ``wanted=0``
    checks whether the limits hold at present.
    """
    missing_on_disk = wanted + promised + reserve - free
    if quota is None:
        return missing_on_disk
    return max(missing_on_disk, used + wanted - quota)

"""Which carts leave the volume, and how many bytes have to: values in, values out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cart that may be evicted, as far as its status goes."""

    cart_id: int
    size: int
    """Bytes of the volume that it owns; those that it only links to are their owner's."""
    used: float
    """Unix time of its last use."""


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Bytes that several carts hold together: they become free when the last of these goes."""

    owner: int
    """The cart that they are counted with."""
    links: frozenset[int]
    """The other carts that hold them."""
    size: int

    @property
    def holders(self) -> frozenset[int]:
        return self.links | {self.owner}


def choose(
    candidates: Iterable[Candidate],
    *,
    needed: int,
    now: float,
    buffer_time: float,
    shares: Collection[SharedBytes] = (),
) -> list[Candidate]:
    """The carts to evict, in that order, so that at least ``needed`` bytes become free.

    Least recently used first, equal times by id.  A cart goes only when its last use is at least
    ``buffer_time`` seconds past; a time in the future (a clock was set back) counts as now.
    A cart whose eviction frees nothing stays, and so does every cart after enough is found.
    If all that may go is not enough, all of it is chosen: the caller compares (:func:`freed`).
    """
    may_go = (one for one in candidates if max(now - one.used, 0) >= buffer_time)
    order = sorted(may_go, key=lambda one: (one.used, one.cart_id))
    chosen: list[Candidate] = []
    missing = needed
    for candidate, gain in zip(order, _gains(order, shares), strict=True):
        if missing <= 0:
            break
        chosen.append(candidate)
        missing -= gain
    return _without_useless(chosen, shares)


def freed(chosen: Iterable[Candidate], shares: Collection[SharedBytes] = ()) -> int:
    """Bytes that become free when all of ``chosen`` go."""
    return sum(_gains(list(chosen), shares))


def _gains(order: list[Candidate], shares: Collection[SharedBytes]) -> list[int]:
    """What the eviction of each cart frees when those before it in ``order`` have gone."""
    order_of = {one.cart_id: number for number, one in enumerate(order)}
    gains = [one.size for one in order]
    for share in shares:
        if share.owner in order_of:
            gains[order_of[share.owner]] -= share.size
            if share.links <= order_of.keys():
                gains[max(order_of[cart_id] for cart_id in share.holders)] += share.size
    return gains


def _without_useless(chosen: list[Candidate], shares: Collection[SharedBytes]) -> list[Candidate]:
    """Those of ``chosen`` that own something alone, or share it only with others of them."""
    evicted = {one.cart_id for one in chosen}
    sole_bytes = {one.cart_id: one.size for one in chosen}
    useful: set[int] = set()
    for share in shares:
        if share.owner in evicted:
            sole_bytes[share.owner] -= share.size
        if share.size and share.holders <= evicted:
            useful |= share.holders
    return [one for one in chosen if sole_bytes[one.cart_id] > 0 or one.cart_id in useful]


def shortfall(
    *, wanted: int, free: int, promised: int, used: int, quota: int | None, reserve: int
) -> int:
    """Bytes that must be freed before ``wanted`` more may be promised; zero or less: they fit.

    Two limits hold at once, and the tighter one decides:

    * ``used``, all that carts take or were promised, and ``wanted`` stay within ``quota``;
    * the disk keeps ``reserve`` bytes free when every promise has been kept: of its ``free``
      bytes, ``promised`` are still to be written by carts in staging.

    A disk with 100 free bytes, 30 of them promised and 20 in reserve, has room for 50::

        shortfall(wanted=60, free=100, promised=30, used=500, quota=None, reserve=20) == 10

    and with a quota of 520, of which 500 are used, those 60 bytes lack 40.  ``wanted=0`` asks
    whether the limits hold as things stand.
    """
    missing_on_disk = wanted + promised + reserve - free
    if quota is None:
        return missing_on_disk
    return max(missing_on_disk, used + wanted - quota)

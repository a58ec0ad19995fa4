"""Which carts leave the volume, and how many bytes have to: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cart that may be evicted, as far as its status goes."""

    cart_id: int
    size: int
    """Bytes that it takes of the volume."""
    used: float
    """Unix time of its last use."""


def choose(
    candidates: Iterable[Candidate], *, needed: int, now: float, buffer_time: float
) -> list[Candidate]:
    """The carts to evict, in that order, so that at least ``needed`` bytes become free.

    Least recently used first, equal times by id.  A cart goes only when its last use is at least
    ``buffer_time`` seconds past; a time in the future (a clock was set back) counts as now.
    What holds no bytes stays, and so does every cart that comes after enough is found.
    If all that may go is not enough, all of it is chosen: the caller compares.
    """
    chosen: list[Candidate] = []
    missing = needed
    may_go = (
        candidate
        for candidate in candidates
        if candidate.size > 0 and max(now - candidate.used, 0) >= buffer_time
    )
    for candidate in sorted(may_go, key=lambda one: (one.used, one.cart_id)):
        if missing <= 0:
            break
        chosen.append(candidate)
        missing -= candidate.size
    return chosen


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

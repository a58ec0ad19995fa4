"""The fair queue: what is served to others before a cart is complete; a pure model of it.

Owners get turns in rotation, and the carts of each owner, too
(:class:`cartd.deferreds.fair_semaphore.FairSemaphore`).  So a small cart does not wait for the
whole of a large one that was posted before it: each gets its share until the small one is complete.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Share:
    """What is left to serve of one cart."""

    key: int
    owner: Hashable
    amount: float
    """In the unit that takes a turn: files, or bytes."""
    size: int | None = None
    """Its bytes; None while they are unknown."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is served to others before a cart is complete."""

    carts: int
    """Those that are complete before it."""
    amount: float
    size: int | None
    """None if the bytes of another cart are unknown."""


class FairQueue:
    """The shares that compete; those with nothing left are ignored."""

    def __init__(self, shares: Iterable[Share]) -> None:
        by_owner: dict[Hashable, list[Share]] = {}
        self._owners: dict[int, Hashable] = {}
        self._unknown: set[int] = set()
        for share in shares:
            if share.amount > 0:
                by_owner.setdefault(share.owner, []).append(share)
                self._owners[share.key] = share.owner
                if share.size is None:
                    self._unknown.add(share.key)
        self._groups = {owner: _Group(found) for owner, found in by_owner.items()}

    def ahead(self, key: int) -> Ahead | None:
        """Return what is served before the cart ``key`` is complete; None if it is not served."""
        if key not in self._owners:
            return None
        own = self._groups[self._owners[key]]
        carts, amount, size, served = own.before(key)
        for group in self._groups.values():
            if group is not own:
                complete, given, bytes_given = group.after(served)
                carts += complete
                amount += given
                size += bytes_given
        known = self._unknown <= {key}
        return Ahead(carts, amount, round(size) if known else None)


class _Group:
    """The carts of one owner, the first to be complete first: they get equal shares."""

    def __init__(self, shares: list[Share]) -> None:
        order = sorted(shares, key=lambda share: (share.amount, share.key))
        self._places = {share.key: place for place, share in enumerate(order)}
        self._amounts = [share.amount for share in order]
        self._sums = [0.0, *accumulate(self._amounts)]
        sizes = [share.size or 0 for share in order]
        self._sizes = [0, *accumulate(sizes)]
        densities = [size / share.amount for size, share in zip(sizes, order, strict=True)]
        self._densities = [0.0, *accumulate(densities)]
        self._served = [self._served_at(place) for place in range(len(order))]
        """What all of them have got when each is complete; ascending."""

    def _served_at(self, place: int) -> float:
        return self._sums[place] + (len(self._amounts) - place) * self._amounts[place]

    def before(self, key: int) -> tuple[int, float, float, float]:
        """Return the carts complete before ``key``, amount and bytes that others have got by then,
        and what all of the group have got."""
        place = self._places[key]
        level = self._amounts[place]
        size = self._sizes[place] + level * (self._densities[-1] - self._densities[place + 1])
        served = self._served[place]
        return place, served - level, size, served

    def after(self, served: float) -> tuple[int, float, float]:
        """Return the complete carts, the amount and the bytes once the group has got ``served``."""
        place = bisect_right(self._served, served)
        left = len(self._amounts) - place
        if not left:
            return place, self._sums[-1], self._sizes[-1]
        level = (served - self._sums[place]) / left
        size = self._sizes[place] + level * (self._densities[-1] - self._densities[place])
        return place, served, size

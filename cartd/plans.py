"""From a cart's rows in the store to the plan of its tar."""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.defer import Deferred, succeed

from cartd.errors import VolumeDamaged
from cartd.model import Cart
from cartd.shared_job import SharedJob
from cartd.store import Store
from cartd.tar.bundle import Bundle
from cartd.tar.layout import Layout
from cartd.threads import RunsInThread

PAGE = 5000
"""Members read at once."""
MOST_MEMBERS_KEPT = 1_000_000
"""Of all plans together: with paths of 30 characters some 60 MiB."""


class Plans:
    """Builds the tars' plans, and keeps the last ones: many ranges are asked of one tar.

    Those who ask for the same plan while it is built wait for it together.
    """

    def __init__(self, store: Store, threads: RunsInThread) -> None:
        self._store = store
        self._threads = threads
        self._kept: OrderedDict[tuple[int, str], tuple[Bundle, int]] = OrderedDict()
        self._members_kept = 0
        self._building: dict[tuple[int, str], SharedJob[Bundle]] = {}

    async def of_ready(self, cart: Cart, top: str) -> Bundle:
        """The plan of a ready cart, which never changes, below the folder ``top``."""
        key = (cart.id, top)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        building = self._building.get(key)
        if building is None or not building.open:
            building = self._building[key] = SharedJob(lambda: self.build(cart, top))
        try:
            plan = await building.result()
        finally:
            # True for the first who goes on after its end, unless it was to be forgotten.
            first = not building.open and self._building.get(key) is building
            if first:
                del self._building[key]
        if first and cart.files_total <= MOST_MEMBERS_KEPT:
            self._keep(key, plan, cart.files_total)
        return plan

    async def build(self, cart: Cart, top: str) -> Bundle:
        """The plan of a cart whose files' sizes are all known.

        :raises VolumeDamaged: the store does not know a size.
        """
        layout = Layout(top=top, created=int(cart.created))
        laid_out: Deferred[None] = succeed(None)
        found = 0
        for first in range(0, cart.files_total, PAGE):
            members = await self._store.members(cart.id, range(first, first + PAGE))
            await laid_out
            # Not waited for until the next page is there: the database reads it meanwhile.
            laid_out = self._threads.run(layout.add, members)
            found += len(members.paths)
        await laid_out
        if found < cart.files_total:
            raise VolumeDamaged("The sizes of some files are not known")
        return layout.bundle()

    def forget(self, cart_id: int) -> None:
        """Drop the plans of a cart that goes back to staging or away."""
        for key in [key for key in self._building if key[0] == cart_id]:
            del self._building[key]
        for key in [key for key in self._kept if key[0] == cart_id]:
            self._members_kept -= self._kept.pop(key)[1]

    def _keep(self, key: tuple[int, str], plan: Bundle, members: int) -> None:
        self._kept[key] = plan, members
        self._members_kept += members
        while self._members_kept > MOST_MEMBERS_KEPT:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._members_kept -= dropped

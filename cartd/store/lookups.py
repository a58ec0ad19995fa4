"""Many look-ups of carts by their uids, answered by few queries.

Strategy: a look-up that comes while a query is under way waits for its end, and is then
answered by one query together with all others that have come meanwhile.  So a look-up never
sees what was before it was asked, and the more are asked, the less each costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, func, select
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from cartd.model import Cart
from cartd.store.database import Database
from cartd.store.rows import CARTS, cart_of
from cartd.store.tables import cart

MOST_TOGETHER = 500
"""Uids of one query: SQLite allows 32,766 parameters, older ones 999."""

_NEWEST_OF_EACH = CARTS.where(
    cart.c.id.in_(
        select(func.max(cart.c.id))
        .where(
            cart.c.cart_uid.in_(bindparam("uids", expanding=True)), cart.c.deleted_date.is_(None)
        )
        .group_by(cart.c.cart_uid)
    )
)


class Lookups:
    """Finds the newest cart of a uid that is not deleted."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[str, Deferred[Cart | None]]] = []
        self._asking = False

    def newest(self, uid: str) -> Deferred[Cart | None]:
        """That cart, as it is after this call; None if there is none."""
        found: Deferred[Cart | None] = Deferred()
        self._waiting.append((uid, found))
        if not self._asking:
            self._ask()
        return found

    def _ask(self) -> None:
        together = self._waiting[:MOST_TOGETHER]
        del self._waiting[:MOST_TOGETHER]
        if together:
            self._asking = True
            answer = Deferred.fromCoroutine(self._carts({uid for uid, _ in together}))
            answer.addBoth(self._answered, together)

    async def _carts(self, uids: set[str]) -> Mapping[str, Cart]:
        rows = await self._database.rows(_NEWEST_OF_EACH, {"uids": list(uids)})
        return {found.uid: found for found in map(cart_of, rows)}

    def _answered(
        self,
        answer: Mapping[str, Cart] | Failure,
        together: Sequence[tuple[str, Deferred[Cart | None]]],
    ) -> None:
        self._asking = False
        self._ask()
        for uid, found in together:
            if isinstance(answer, Failure):
                found.errback(answer)
            else:
                found.callback(answer.get(uid))

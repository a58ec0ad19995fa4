"""Look-ups of the newest cart of a uid, batched.

Strategy: look-ups that arrive during a query wait for its end, and are then answered together by
one query.  A look-up never sees a state older than its call, and the cost per look-up falls with
the load.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, bindparam, func, select
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from cartd.model import Cart
from cartd.store.database import Database
from cartd.store.tables import CARTS, cart, cart_of

K = TypeVar("K")
MAX_UIDS = 500
"""Uids per query: SQLite allows 32,766 parameters, older versions 999."""
MAX_OWNED_UIDS = 32
"""Owner and uid pairs per query: the database looks up every owner with every uid."""
_UID = cart.c.cart_uid.in_(bindparam("uids", expanding=True))
_OWNER = cart.c.owner.in_(bindparam("owners", expanding=True))


def _newest_of_each(
    group: Sequence[ColumnElement[Any]], *wanted: ColumnElement[bool]
) -> Select[Any]:
    newest = select(func.max(cart.c.id)).where(*wanted, cart.c.deleted_date.is_(None))
    return CARTS.where(cart.c.id.in_(newest.group_by(*group)))


_NEWEST = _newest_of_each([cart.c.cart_uid], _UID)
_NEWEST_OF_OWNERS = _newest_of_each([cart.c.owner, cart.c.cart_uid], _OWNER, _UID)


class Lookups:
    """Finds the newest undeleted cart of a uid, of any owner or of one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._of_all = _BatchedLookup(self._find, MAX_UIDS)
        self._of_owners = _BatchedLookup(self._find_owned, MAX_OWNED_UIDS)

    def newest(self, uid: str) -> Deferred[Cart | None]:
        """Return the newest cart of ``uid``, not older than this call; None if there is none."""
        return self._of_all.find(uid)

    def newest_of(self, owner: str, uid: str) -> Deferred[Cart | None]:
        """As :meth:`newest`, among the carts of ``owner``."""
        return self._of_owners.find((owner, uid))

    async def _find(self, uids: set[str]) -> Mapping[str, Cart]:
        rows = await self._database.rows(_NEWEST, {"uids": list(uids)})
        return {found.uid: found for found in map(cart_of, rows)}

    async def _find_owned(self, pairs: set[tuple[str, str]]) -> Mapping[tuple[str, str], Cart]:
        owners, uids = zip(*pairs, strict=True)
        wanted = {"owners": list(set(owners)), "uids": list(set(uids))}
        rows = await self._database.rows(_NEWEST_OF_OWNERS, wanted)
        return {(found.owner or "", found.uid): found for found in map(cart_of, rows)}


class _BatchedLookup(Generic[K]):
    """Calls ``find`` with at most ``limit`` keys at a time; other keys wait."""

    def __init__(
        self, find: Callable[[set[K]], Coroutine[Any, Any, Mapping[K, Cart]]], limit: int
    ) -> None:
        self._find = find
        self._limit = limit
        self._waiting: list[tuple[K, Deferred[Cart | None]]] = []
        self._is_running = False

    def find(self, key: K) -> Deferred[Cart | None]:
        found: Deferred[Cart | None] = Deferred()
        self._waiting.append((key, found))
        if not self._is_running:
            self._run_next()
        return found

    def _run_next(self) -> None:
        batch = self._waiting[: self._limit]
        del self._waiting[: self._limit]
        if batch:
            self._is_running = True
            answer = Deferred.fromCoroutine(self._find({key for key, _ in batch}))
            answer.addBoth(self._answered, batch)

    def _answered(
        self,
        answer: Mapping[K, Cart] | Failure,
        batch: Sequence[tuple[K, Deferred[Cart | None]]],
    ) -> None:
        self._is_running = False
        self._run_next()
        for key, found in batch:
            if isinstance(answer, Failure):
                found.errback(answer)
            else:
                found.callback(answer.get(key))

"""Posting and finding carts, and their access times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Select, and_, bindparam, insert, or_, select, update

from cartd.carts.quotas import NO_QUOTA, UserQuota
from cartd.errors import CartdError
from cartd.manifest import Entry, Manifest
from cartd.model import UNFINISHED as UNFINISHED_STATUSES
from cartd.model import UNRESTRICTED, Cart, CartFile, CartStatus, FileStatus, Viewer
from cartd.store.batching import BATCH, batched
from cartd.store.byte_ownership import lock_writers
from cartd.store.database import Database, Transaction
from cartd.store.json_columns import as_json_columns
from cartd.store.lookups import Lookups
from cartd.store.rows import (
    CARTS,
    FILES,
    MEMBERS,
    cart_of,
    date_of,
    file_of,
    members_of,
    time_of,
)
from cartd.store.tables import cart, file
from cartd.store.viewers import check_quota, newest_in
from cartd.tar.index_builder import Members

T = TypeVar("T")

_NOT_DELETED = CARTS.where(cart.c.deleted_date.is_(None))
_BY_ID = CARTS.where(cart.c.id == bindparam("cart_id"))
_ACTIVE = _NOT_DELETED.order_by(cart.c.id.desc())
# Uses the index of uids; a uid has few carts.  The date of a tar that Pacifica Cartd wrote is
# unknown.
_OTHER_TARS = (
    select(cart.c.id)
    .where(
        cart.c.cart_uid == bindparam("uid"),
        cart.c.id != bindparam("cart_id"),
        or_(
            and_(cart.c.tar_date >= bindparam("since"), cart.c.tar_date < bindparam("until")),
            and_(cart.c.tar_date.is_(None), cart.c.fingerprint.is_(None)),
        ),
    )
    .limit(1)
)
_UNMEASURED = _NOT_DELETED.where(
    cart.c.bytes_total.is_(None),
    or_(
        cart.c.status == CartStatus.READY.value,
        and_(
            cart.c.status == CartStatus.ERROR.value,
            cart.c.fingerprint.is_(None),
            cart.c.volume_bytes == 0,
        ),
    ),
).order_by(cart.c.id)
_FILES = (
    FILES.where(file.c.cart_id == bindparam("cart_id"), file.c.position > bindparam("after"))
    .order_by(file.c.position)
    .limit(bindparam("count"))
)
_MEMBERS = as_json_columns(
    MEMBERS.where(
        file.c.cart_id == bindparam("cart_id"),
        file.c.position.between(bindparam("first"), bindparam("last")),
        file.c.size.is_not(None),
        file.c.mtime.is_not(None),
    ).order_by(file.c.position)
)
_UNSTAGED_FILES = _FILES.where(file.c.status != FileStatus.STAGED.value)
_UNSTAGED_AT = FILES.where(
    file.c.cart_id == bindparam("cart_id"),
    file.c.position.in_(bindparam("positions", expanding=True)),
    file.c.status != FileStatus.STAGED.value,
).order_by(file.c.position)
_INSERT_FILES = insert(file)
_TOUCH = (
    update(cart)
    .where(cart.c.id == bindparam("cart_id"), cart.c.used_date < bindparam("used"))
    .values(used_date=bindparam("used"))
)
_POST_AGAIN = (
    update(cart)
    .where(
        cart.c.id == bindparam("cart_id"),
        cart.c.deleted_date.is_(None),
        cart.c.evicting.is_(None),
    )
    .values(used_date=bindparam("used"))
)
_DATE_RESOLUTION = 1e-6
"""Seconds: the smallest difference between two dates in a table."""


class Carts:
    """Queries for whole carts."""

    _database: Database
    _lookups: Lookups

    async def post(
        self,
        uid: str,
        manifest: Manifest,
        *,
        bundle: bool,
        now: float,
        viewer: Viewer = UNRESTRICTED,
        limits: UserQuota = NO_QUOTA,
        refusal: CartdError | None = None,
    ) -> tuple[Cart, bool]:
        """Return the cart of this manifest, and whether it is new.

        An existing cart is reused, and its access time updated, if it is the newest cart of ``uid``
        that ``viewer`` may see, belongs to ``viewer``, is unfinished or ready, and has the same
        manifest.  Otherwise a new cart is inserted in ``staging`` with all its files, or nothing.

        ``refusal`` is raised instead of inserting a new cart.

        :raises QuotaExceeded: a new cart would exceed ``limits``, the quota of its owner.
        """
        async with self._database.transaction() as transaction:
            # If two nodes get the same manifest at once, the second finds the cart of the first.
            await transaction.advisory_lock(f"carts of {uid} of {viewer.owner or ''}")
            newest = await newest_in(transaction, viewer, uid)
            if newest and newest.owner == viewer.owner and _is_reusable(newest, manifest):
                # Always a new date: an eviction that has read the old one must not begin.
                used = date_of(max(now, newest.used + _DATE_RESOLUTION))
                again = {"cart_id": newest.id, "used": used}
                if await transaction.execute(_POST_AGAIN, again):
                    return replace(newest, used=time_of(used)), False
            if refusal is not None:
                raise refusal
            if limits and viewer.owner is not None:
                await check_quota(transaction, viewer.owner, limits, len(manifest.entries))
            posted = await _insert_cart(transaction, uid, manifest, bundle, now, viewer.owner)
            rows = _file_rows(posted.id, manifest.entries)
            for batch in batched(rows, BATCH):
                await transaction.execute(_INSERT_FILES, batch)
        return posted, True

    async def newest(self, uid: str) -> Cart | None:
        """Return the newest undeleted cart of ``uid``, of any owner."""
        return await self._lookups.newest(uid)

    async def cart(self, cart_id: int) -> Cart | None:
        """Return the cart of this id, deleted or not."""
        rows = await self._database.rows(_BY_ID, {"cart_id": cart_id})
        return cart_of(rows[0]) if rows else None

    async def has_other_tar_of_second(self, one: Cart, second: int) -> bool:
        """Whether another cart of the same uid, deleted or not, may have a tar of that second.

        ``second`` is a whole Unix second.
        """
        parameters = {
            "uid": one.uid,
            "cart_id": one.id,
            "since": date_of(second),
            "until": date_of(second + 1),
        }
        return bool(await self._database.rows(_OTHER_TARS, parameters))

    async def active(self) -> list[Cart]:
        """Return all undeleted carts, newest first."""
        return await self._carts(_ACTIVE)

    async def unmeasured(self) -> list[Cart]:
        """Return the finished carts of unknown size (from Pacifica), oldest first."""
        return await self._carts(_UNMEASURED)

    async def files(
        self, cart_id: int, *, after: int = -1, limit: int = 2000, unstaged: bool = False
    ) -> list[CartFile]:
        """Return at most ``limit`` files after the position ``after``, in manifest order."""
        query = _UNSTAGED_FILES if unstaged else _FILES
        page = {"cart_id": cart_id, "after": after, "count": limit}
        return [file_of(row) for row in await self._database.rows(query, page)]

    async def files_at(self, cart_id: int, positions: Sequence[int]) -> list[CartFile]:
        """Return the unstaged files among some hundreds of ``positions``, in order."""
        page = {"cart_id": cart_id, "positions": list(positions)}
        return [file_of(row) for row in await self._database.rows(_UNSTAGED_AT, page)]

    async def members(self, cart_id: int, positions: range) -> Members:
        """Return the tar members at ``positions``, in order, without files of unknown size."""
        page = {"cart_id": cart_id, "first": positions.start, "last": positions.stop - 1}
        [row] = await self._database.rows(_MEMBERS, page)
        return members_of(row)

    async def touch(self, uses: Mapping[int, float]) -> None:
        """Record the last use of carts, by id; an earlier time than recorded is ignored."""
        if not uses:
            return
        rows = [{"cart_id": cart_id, "used": date_of(used)} for cart_id, used in uses.items()]
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_TOUCH, rows)

    async def _carts(self, query: Select[Any]) -> list[Cart]:
        return [cart_of(row) for row in await self._database.rows(query)]


def _is_reusable(newest: Cart, manifest: Manifest) -> bool:
    alive = newest.status is CartStatus.READY or newest.status in UNFINISHED_STATUSES
    stays = alive and newest.evicting is None
    return stays and newest.fingerprint == manifest.fingerprint


async def _insert_cart(
    transaction: Transaction,
    uid: str,
    manifest: Manifest,
    bundle: bool,
    now: float,
    owner: str | None,
) -> Cart:
    values = {
        "cart_uid": uid,
        "status": CartStatus.STAGING.value,
        "creation_date": date_of(now),
        "updated_date": date_of(now),
        "used_date": date_of(now),
        "error": "",
        "bundle": bundle,
        "fingerprint": manifest.fingerprint,
        "owner": owner,
        "files_total": len(manifest.entries),
    }
    cart_id = await transaction.insert(insert(cart), values)
    return cart_of((await transaction.rows(_BY_ID, {"cart_id": cart_id}))[0])


def _file_rows(cart_id: int, entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    for position, entry in enumerate(entries):
        yield {
            "cart_id": cart_id,
            "position": position,
            "file_name": entry.archive_id,
            "bundle_path": entry.path,
            "hash_type": entry.hash_type,
            "hash_value": entry.hash_sum,
            "status": FileStatus.WAITING.value,
            "error": "",
        }

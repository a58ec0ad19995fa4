"""Post and find carts; which carts a viewer may see; quotas; access times.

A client finds a uid only among the carts that it may see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec.json import encode
from sqlalchemy import (
    Select,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from cartd.errors import CartdError
from cartd.manifest import Entry, Manifest
from cartd.model import (
    NO_QUOTA,
    UNRESTRICTED,
    Cart,
    CartFile,
    CartStatus,
    FileStatus,
    Outstanding,
    UserQuota,
    Viewer,
)
from cartd.model import UNFINISHED as UNFINISHED_STATUSES
from cartd.store.database import Database, Transaction, lock_writers
from cartd.store.labels import insert_labels
from cartd.store.lookups import Lookups
from cartd.store.tables import (
    BAG_MEMBERS,
    BATCH,
    CARTS,
    FILES,
    MEMBERS,
    UNFINISHED,
    as_json_columns,
    bag_members_of,
    batched,
    cart,
    cart_of,
    date_of,
    file,
    file_of,
    members_of,
    time_of,
)
from cartd.tar.members import Members

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
_OTHER_BAGS = (
    select(cart.c.id)
    .where(
        cart.c.cart_uid == bindparam("uid"),
        cart.c.id != bindparam("cart_id"),
        cart.c.bag.is_not(None),
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


def _page_of(members: Select[Any]) -> Select[Any]:
    """Return a query for a page of the members of a cart, without those that have failed."""
    return as_json_columns(
        members.where(
            file.c.cart_id == bindparam("cart_id"),
            file.c.position.between(bindparam("first"), bindparam("last")),
            file.c.size.is_not(None),
            file.c.mtime.is_not(None),
            file.c.status != FileStatus.ERROR.value,
        ).order_by(file.c.position)
    )


_MEMBERS = _page_of(MEMBERS)
_BAG_MEMBERS = _page_of(BAG_MEMBERS)
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
_OF_UID = CARTS.where(cart.c.cart_uid == bindparam("uid"), cart.c.deleted_date.is_(None)).order_by(
    cart.c.id.desc()
)
_OF_OWNER = _OF_UID.where(cart.c.owner == bindparam("owner"))
_NEWEST_OF_UID, _NEWEST_OF_OWNER = _OF_UID.limit(1), _OF_OWNER.limit(1)
_UNFINISHED = select(func.count().label("carts")).where(
    cart.c.deleted_date.is_(None),
    cart.c.status.in_(UNFINISHED),
)
_DELETED = select(cart.c.id).where(
    cart.c.id.in_(bindparam("cart_ids", expanding=True)), cart.c.deleted_date.is_not(None)
)
_KNOWN = select(cart.c.id).where(cart.c.id.in_(bindparam("cart_ids", expanding=True)))
_NEWEST_WITH_FILES = (
    select(func.max(cart.c.id))
    .where(cart.c.files_staged > 0, cart.c.deleted_date.is_(None))
    .scalar_subquery()
)
_STAGED_FILE = (
    select(file.c.file_name)
    .where(
        file.c.cart_id == _NEWEST_WITH_FILES,
        file.c.status == FileStatus.STAGED.value,
        file.c.file_name != bindparam("other_than"),
    )
    .limit(1)
)
_UNSTAGED_BYTES = case(
    (cart.c.bytes_total > cart.c.bytes_staged, cart.c.bytes_total - cart.c.bytes_staged), else_=0
)
_OUTSTANDING = select(
    func.count().label("carts"),
    func.sum(cart.c.files_total - cart.c.files_staged).label("files"),
    func.sum(_UNSTAGED_BYTES).label("bytes"),
).where(
    cart.c.owner == bindparam("owner"),
    cart.c.status.in_(UNFINISHED),
    cart.c.deleted_date.is_(None),
)


class Carts:
    """Queries for whole carts, by uid, viewer or id."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lookups = Lookups(database)

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

    async def has_other_bag(self, one: Cart) -> bool:
        """Whether another cart of the same uid, deleted or not, has had a bag."""
        uid = {"uid": one.uid, "cart_id": one.id}
        return bool(await self._database.rows(_OTHER_BAGS, uid))

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
        """Return the tar members at ``positions``, in order.

        These are the files of known size that have not failed.
        """
        page = {"cart_id": cart_id, "first": positions.start, "last": positions.stop - 1}
        [row] = await self._database.rows(_MEMBERS, page)
        return members_of(row)

    async def bag_members(
        self, cart_id: int, positions: range, hash_types: Collection[str]
    ) -> Members:
        """As :meth:`members`, with the ``sums`` of one algorithm, given by all its names."""
        page = {
            "cart_id": cart_id,
            "first": positions.start,
            "last": positions.stop - 1,
            "hash_types": list(hash_types),
        }
        [row] = await self._database.rows(_BAG_MEMBERS, page)
        return bag_members_of(row)

    async def recently_staged_file(self, other_than: str) -> str | None:
        """Return the archive id of a staged file of the newest cart that has any.

        The result is not ``other_than``; None if the cart has no other staged file.
        """
        rows = await self._database.rows(_STAGED_FILE, {"other_than": other_than})
        return rows[0].file_name if rows else None

    async def touch(self, uses: Mapping[int, float]) -> None:
        """Record the last use of carts, by id; an earlier time than recorded is ignored."""
        if not uses:
            return
        rows = [{"cart_id": cart_id, "used": date_of(used)} for cart_id, used in uses.items()]
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_TOUCH, rows)

    async def newest_for(self, viewer: Viewer, uid: str) -> Cart | None:
        """Return the newest undeleted cart of ``uid`` that ``viewer`` may see."""
        if viewer.sees_all:
            return await self._lookups.newest(uid)
        assert viewer.owner is not None
        return await self._lookups.newest_of(viewer.owner, uid)

    async def check_quota(self, owner: str, limits: UserQuota, files: int) -> None:
        """Check that ``owner`` may have one more unfinished cart, with that many unstaged files.

        :raises QuotaExceeded: the quota is exceeded.
        """
        async with self._database.transaction() as transaction:
            await check_quota(transaction, owner, limits, files)

    async def unfinished(self) -> int:
        """Return the number of carts that are neither ready nor in error, of all processes."""
        [row] = await self._database.rows(_UNFINISHED, {})
        count: int = row.carts
        return count

    async def carts_for(self, viewer: Viewer, uid: str) -> list[Cart]:
        """Return all undeleted carts of ``uid`` that ``viewer`` may see, newest first."""
        query = _OF_UID if viewer.sees_all else _OF_OWNER
        return [cart_of(row) for row in await self._database.rows(query, _parameters(viewer, uid))]

    async def deleted_among(self, cart_ids: Sequence[int]) -> set[int]:
        """Return the ids of deleted carts; ids without a row are not included."""
        deleted: set[int] = set()
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_DELETED, {"cart_ids": batch})
            deleted.update(row.id for row in rows)
        return deleted

    async def unknown_among(self, cart_ids: Sequence[int]) -> set[int]:
        """Return the ids that no cart has or had."""
        unknown = set(cart_ids)
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_KNOWN, {"cart_ids": batch})
            unknown.difference_update(row.id for row in rows)
        return unknown

    async def retire_unknown_ids(self, cart_ids: Sequence[int]) -> set[int]:
        """As :meth:`unknown_among`, and no cart will ever get one of these ids."""
        async with self._database.transaction() as transaction:
            await transaction.lock_table(cart)
            rows = await transaction.rows(_KNOWN, {"cart_ids": cart_ids})
            unknown = set(cart_ids).difference(row.id for row in rows)
            if unknown:
                await transaction.advance_ids(cart, max(unknown))
        return unknown

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
        "name": manifest.name,
        "labels": encode(manifest.labels).decode(),
        "format": manifest.format.value,
        "max_failed": manifest.max_failed,
    }
    cart_id = await transaction.insert(insert(cart), values)
    await insert_labels(transaction, cart_id, owner, manifest.labels)
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


async def newest_in(transaction: Transaction, viewer: Viewer, uid: str) -> Cart | None:
    """As :meth:`Carts.newest_for`, within a transaction."""
    query = _NEWEST_OF_UID if viewer.sees_all else _NEWEST_OF_OWNER
    rows = await transaction.rows(query, _parameters(viewer, uid))
    return cart_of(rows[0]) if rows else None


async def check_quota(transaction: Transaction, owner: str, limits: UserQuota, files: int) -> None:
    """Check that ``owner`` may post one more cart of ``files`` files.

    Takes an advisory lock until the transaction ends, so concurrent posts of one user, from any
    process, are counted one after the other.

    :raises QuotaExceeded: the quota is exceeded.
    """
    await transaction.advisory_lock(f"quota of {owner}")
    [row] = await transaction.rows(_OUTSTANDING, {"owner": owner})
    outstanding = Outstanding(int(row.carts), int(row.files or 0), int(row.bytes or 0))
    limits.check(outstanding, files)


def _parameters(viewer: Viewer, uid: str) -> dict[str, Any]:
    return {"uid": uid} if viewer.sees_all else {"uid": uid, "owner": viewer.owner}

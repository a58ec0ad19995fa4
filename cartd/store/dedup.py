"""Deduplication: find files that another cart has staged, and record them when they are linked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap

from sqlalchemy import (
    ColumnElement,
    Text,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    select,
    update,
)

from cartd.model import CartStatus, DuplicateFile, FileStatus, SecondHash
from cartd.store.database import Database, Transaction, lock_writers
from cartd.store.durability import mark_dirty
from cartd.store.leases import require_lease
from cartd.store.progress import record_staged_in
from cartd.store.tables import BATCH, batched, cart, file, in_field_order

# A literal, as in the index's condition: with a parameter SQLite would not use the index.
_STAGED: ColumnElement[str] = literal_column("'staged'")
_other = file.alias("other")
_others_cart = cart.alias("others_cart")
_found = file.alias("found")
_found_cart = cart.alias("found_cart")
_NOT_DELETED = _others_cart.c.deleted_date.is_(None)
_HAS_TREE = _NOT_DELETED & (
    ~_others_cart.c.bundle
    | (_others_cart.c.status != CartStatus.READY.value)
    | (_others_cart.c.files_failed > 0)
)
"""True if the file may exist outside a tar.  A bundle's files do until its tar is complete, and
while its cart is partial."""
_IN_PLACE = _NOT_DELETED & ~_others_cart.c.bundle
"""True if the file stays outside a tar: not for a bundle, even before its tar is complete."""
_SAME_CONTENT = (
    _other.c.file_name == file.c.file_name,
    _other.c.status == _STAGED,
    _other.c.hash_type == file.c.hash_type,
    _other.c.hash_value == file.c.hash_value,
)
_DUPLICATE = (
    select(_other.c.id)
    .join(_others_cart, _others_cart.c.id == _other.c.cart_id)
    .where(
        *_SAME_CONTENT,
        _other.c.cart_id != file.c.cart_id,
        # Carts of Pacifica have no sizes until they are measured.
        _other.c.size.is_not(None),
        _other.c.mtime.is_not(None),
        _IN_PLACE,
    )
    .limit(1)
    .correlate(file)
    .scalar_subquery()
)
_FOUND = select(
    file.c.position,
    file.c.file_name,
    file.c.hash_type,
    file.c.hash_value,
    exists()
    .where(
        *_SAME_CONTENT,
        _others_cart.c.id == _other.c.cart_id,
        _HAS_TREE,
    )
    .correlate(file)
    .label("is_elsewhere"),
).where(
    file.c.cart_id == bindparam("in_cart"),
    file.c.position.in_(bindparam("positions", expanding=True)),
    file.c.status != FileStatus.STAGED.value,
)
_DUPLICATES = (
    select(
        *in_field_order(
            DuplicateFile,
            {
                "position": file.c.position,
                "path": file.c.bundle_path,
                "staged_id": _found.c.id,
                "staged_cart": _found.c.cart_id,
                "staged_uid": _found_cart.c.cart_uid,
                "staged_path": _found.c.bundle_path,
                "size": _found.c.size,
                "mtime": _found.c.mtime,
                "hash_type": file.c.hash_type,
                "hash_sum": file.c.hash_value,
                "invalidations": _found_cart.c.invalidations,
                "also_hash_type": _found.c.also_hash_type,
                "also_hash_sum": _found.c.also_hash_value,
                "had_hash_type": file.c.also_hash_type,
            },
        )
    )
    .select_from(file)
    .join(_found, _found.c.id == _DUPLICATE)
    .join(_found_cart, _found_cart.c.id == _found.c.cart_id)
    .where(
        file.c.cart_id == bindparam("cart_id"),
        file.c.position.between(bindparam("first"), bindparam("last")),
        file.c.status != FileStatus.STAGED.value,
        file.c.hash_value != "",
    )
    .order_by(file.c.position)
)
_STAGED_SIZES = (
    select(
        _other.c.file_name,
        _other.c.hash_type,
        _other.c.hash_value,
        func.max(_other.c.size).label("size"),
    )
    .join(_others_cart, _others_cart.c.id == _other.c.cart_id)
    .where(
        _other.c.file_name.in_(bindparam("names", expanding=True)),
        _other.c.status == _STAGED,
        _other.c.size.is_not(None),
        _other.c.mtime.is_not(None),
        _IN_PLACE,
    )
    .group_by(_other.c.file_name, _other.c.hash_type, _other.c.hash_value)
)
# Two queries by primary key: a join might be planned from the carts, over all their files.
_STAGED_FILES = select(file.c.id, file.c.cart_id, file.c.status, file.c.linked_to).where(
    file.c.id.in_(bindparam("ids", expanding=True))
)
_CARTS_IN_PLACE = select(_others_cart.c.id, _others_cart.c.invalidations).where(
    _others_cart.c.id.in_(bindparam("ids", expanding=True)), _IN_PLACE
)
_UNSTAGED = select(file.c.position).where(
    file.c.cart_id == bindparam("in_cart"),
    file.c.position.in_(bindparam("positions", expanding=True)),
    file.c.status != FileStatus.STAGED.value,
)
_RECORD_LINKED = (
    update(file)
    .where(file.c.cart_id == bindparam("in_cart"), file.c.position == bindparam("at"))
    .values(
        status=FileStatus.STAGED.value,
        error="",
        problem=None,
        size=bindparam("new_size"),
        # A restaged cart keeps its tar byte for byte, so downloads can resume.
        mtime=func.coalesce(file.c.mtime, bindparam("new_mtime")),
        linked_to=bindparam("owner"),
        also_hash_type=func.coalesce(bindparam("also_type", type_=Text), file.c.also_hash_type),
        also_hash_value=func.coalesce(bindparam("also_sum", type_=Text), file.c.also_hash_value),
    )
)
_STAGED_NOW = cart.c.bytes_staged + bindparam("more_bytes")
_COUNT = (
    update(cart)
    .where(cart.c.id == bindparam("cart_id"))
    .values(
        files_staged=cart.c.files_staged + bindparam("more_files"),
        bytes_staged=_STAGED_NOW,
        bytes_linked=cart.c.bytes_linked + bindparam("more_bytes"),
        files_linked=cart.c.files_linked + bindparam("more_files"),
        size_linked=cart.c.size_linked + bindparam("more_bytes"),
        # A restaged cart has a reservation, a new one does not.
        volume_bytes=case(
            (cart.c.volume_bytes < _STAGED_NOW, _STAGED_NOW), else_=cart.c.volume_bytes
        ),
    )
)


Content = tuple[str, str, str]
"""Id in the archive, hash type and hash sum."""


class Dedup:
    """Queries for files that need not be fetched."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def duplicates(self, cart_id: int, positions: range) -> list[DuplicateFile]:
        """Return a staged duplicate in another cart for each unstaged file at ``positions``.

        Files of unknown hash are skipped.
        """
        page = {"cart_id": cart_id, "first": positions.start, "last": positions.stop - 1}
        return list(starmap(DuplicateFile, await self._database.rows(_DUPLICATES, page)))

    async def staged(self, files: Sequence[Content]) -> dict[Content, int]:
        """Return the sizes of those of some hundreds of files that a cart has on the volume."""
        if not files:
            return {}
        names = list({name for name, _, _ in files})
        rows = await self._database.rows(_STAGED_SIZES, {"names": names})
        return {(row.file_name, row.hash_type, row.hash_value): row.size for row in rows}

    async def record_found(
        self,
        cart_id: int,
        holder: str,
        found: Mapping[int, str],
        second: Mapping[int, SecondHash] | None = None,
    ) -> set[int]:
        """Record files found on the volume, their digests by position; return those recorded.

        ``second`` has the second hashes of some of them.
        A file that is also staged elsewhere is not recorded: it may be the same inode under another
        name, in another cart or at another position of this one, and is counted there.
        """
        recorded: set[int] = set()
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            for batch in batched(iter(sorted(found)), BATCH):
                rows = await transaction.rows(_FOUND, {"in_cart": cart_id, "positions": batch})
                only_here = {
                    (row.file_name, row.hash_type, row.hash_value): row.position
                    for row in rows
                    if not row.is_elsewhere
                }
                digests = {at: found[at] for at in only_here.values()}
                await record_staged_in(transaction, cart_id, digests, second or {})
                recorded |= digests.keys()
        return recorded

    async def record_linked(
        self, cart_id: int, holder: str, linked: Sequence[DuplicateFile]
    ) -> set[int]:
        """Record files that are on the volume, each as a hard link to its duplicate.

        One transaction, which writes nothing if the lease was lost.  Returns the positions of
        links that are not recorded because their source is no longer valid: its cart was deleted
        (a third cart may own the bytes now), or has had files invalidated, after which the same
        row may describe another file on the disk.
        """
        invalid: set[int] = set()
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            for batch in batched(iter(linked), BATCH):
                invalid |= await _record_linked(transaction, cart_id, batch)
        return invalid


async def _record_linked(
    transaction: Transaction, cart_id: int, linked: Sequence[DuplicateFile]
) -> set[int]:
    at = {"in_cart": cart_id, "positions": [duplicate.position for duplicate in linked]}
    unstaged = {row.position for row in await transaction.rows(_UNSTAGED, at)}
    wanted = [duplicate for duplicate in linked if duplicate.position in unstaged]
    owners = await _owners(transaction, wanted)
    new = [duplicate for duplicate in wanted if duplicate.staged_id in owners]
    invalid = {duplicate.position for duplicate in wanted} - {
        duplicate.position for duplicate in new
    }
    if not new:
        return invalid
    await transaction.execute(
        _RECORD_LINKED,
        [
            {
                "in_cart": cart_id,
                "at": duplicate.position,
                "new_size": duplicate.size,
                "new_mtime": duplicate.mtime,
                "owner": owners[duplicate.staged_id],
                "also_type": duplicate.also_hash_type,
                "also_sum": duplicate.also_hash_sum,
            }
            for duplicate in new
        ],
    )
    await mark_dirty(transaction, cart_id, [duplicate.position for duplicate in new])
    size = sum(duplicate.size for duplicate in new)
    await transaction.execute(
        _COUNT, {"cart_id": cart_id, "more_files": len(new), "more_bytes": size}
    )
    return invalid


async def _owners(transaction: Transaction, duplicates: Sequence[DuplicateFile]) -> dict[int, int]:
    """Return the owners of the duplicates that are still staged and in place, by their ids."""
    files = await transaction.rows(
        _STAGED_FILES, {"ids": [duplicate.staged_id for duplicate in duplicates]}
    )
    carts = list({row.cart_id for row in files})
    in_place = await transaction.rows(_CARTS_IN_PLACE, {"ids": carts})
    invalidations = {row.id: row.invalidations for row in in_place}
    known = {duplicate.staged_id: duplicate.invalidations for duplicate in duplicates}
    return {
        row.id: row.linked_to or row.id
        for row in files
        if invalidations.get(row.cart_id) == known[row.id] and row.status == FileStatus.STAGED.value
    }

"""Files that another cart has staged already: found, and recorded when they are linked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap

from sqlalchemy import ColumnElement, bindparam, case, exists, func, literal_column, select, update

from cartd.model import CartStatus, DuplicateFile, FileStatus
from cartd.store.batching import BATCH, batches
from cartd.store.byte_ownership import take_turn
from cartd.store.database import Database, Transaction
from cartd.store.durability import note_unsynced
from cartd.store.leases import hold
from cartd.store.progress import record_staged_in
from cartd.store.tables import cart, file

# As it is in the index's own condition: a parameter would hide from SQLite that they agree.
_STAGED: ColumnElement[str] = literal_column("'staged'")
_other = file.alias("other")
_others_cart = cart.alias("others_cart")
_found = file.alias("found")
_found_cart = cart.alias("found_cart")
_LIVES = _others_cart.c.deleted_date.is_(None)
_HAS_TREE = _LIVES & (~_others_cart.c.bundle | (_others_cart.c.status != CartStatus.READY.value))
"""Whether a staged file may be one on the volume: a bundle gives none, but has them until then."""
_IN_PLACE = _LIVES & ~_others_cart.c.bundle
"""Whether a staged file is one on the volume: those of a bundled cart are in its tar."""
_SAME = (
    _other.c.file_name == file.c.file_name,
    _other.c.status == _STAGED,
    _other.c.hash_type == file.c.hash_type,
    _other.c.hash_value == file.c.hash_value,
)
_TWIN = (
    select(_other.c.id)
    .join(_others_cart, _others_cart.c.id == _other.c.cart_id)
    .where(
        *_SAME,
        _other.c.cart_id != file.c.cart_id,
        # Pacifica's carts have no sizes until they are measured.
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
        *_SAME,
        _others_cart.c.id == _other.c.cart_id,
        _HAS_TREE,
    )
    .correlate(file),
).where(
    file.c.cart_id == bindparam("in_cart"),
    file.c.position.in_(bindparam("positions", expanding=True)),
    file.c.status != FileStatus.STAGED.value,
)
_TWINS = (
    select(
        file.c.position,
        file.c.bundle_path,
        _found.c.id,
        _found.c.cart_id,
        _found_cart.c.cart_uid,
        _found.c.bundle_path,
        _found.c.size,
        _found.c.mtime,
        file.c.hash_type,
        file.c.hash_value,
        _found_cart.c.losses,
    )
    .select_from(file)
    .join(_found, _found.c.id == _TWIN)
    .join(_found_cart, _found_cart.c.id == _found.c.cart_id)
    .where(
        file.c.cart_id == bindparam("cart_id"),
        file.c.position.between(bindparam("first"), bindparam("last")),
        file.c.status != FileStatus.STAGED.value,
        file.c.hash_value != "",
    )
    .order_by(file.c.position)
)
# In two steps, each by primary keys: a join may be planned from the carts, over all their files.
_STAGED_ONES = select(file.c.id, file.c.cart_id, file.c.status, file.c.linked_to).where(
    file.c.id.in_(bindparam("ids", expanding=True))
)
_CARTS_IN_PLACE = select(_others_cart.c.id, _others_cart.c.losses).where(
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
        size=bindparam("new_size"),
        # A cart that is staged again keeps its tar, byte for byte: downloads of it can resume.
        mtime=func.coalesce(file.c.mtime, bindparam("new_mtime")),
        linked_to=bindparam("owner"),
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
        # Room was promised to a cart that is staged again, but not to a new one.
        volume_bytes=case(
            (cart.c.volume_bytes < _STAGED_NOW, _STAGED_NOW), else_=cart.c.volume_bytes
        ),
    )
)


class Twins:
    """The part of the store that knows what need not be fetched."""

    _database: Database

    async def twins(self, cart_id: int, positions: range) -> list[DuplicateFile]:
        """Of the files at ``positions`` that are not staged, those that another cart has.

        Nothing is said of a file whose hash nobody knows.
        """
        page = {"cart_id": cart_id, "first": positions.start, "last": positions.stop - 1}
        return list(starmap(DuplicateFile, await self._database.rows(_TWINS, page)))

    async def record_found(self, cart_id: int, holder: str, found: Mapping[int, str]) -> set[int]:
        """Files that are on the volume and were not recorded, their digests by position.

        Which are recorded: those that are not staged elsewhere.  What another cart has, or this one
        at another position, may be the same file under another name, and is counted there.
        """
        recorded: set[int] = set()
        async with self._database.transaction() as transaction:
            await take_turn(transaction)
            await hold(transaction, cart_id, holder)
            for batch in batches(iter(sorted(found)), BATCH):
                rows = await transaction.rows(_FOUND, {"in_cart": cart_id, "positions": batch})
                alone = {tuple(same): at for at, *same, elsewhere in rows if not elsewhere}
                digests = {at: found[at] for at in alone.values()}
                await record_staged_in(transaction, cart_id, digests)
                recorded |= digests.keys()
        return recorded

    async def record_linked(
        self, cart_id: int, holder: str, linked: Sequence[DuplicateFile]
    ) -> set[int]:
        """Files that are on the volume, each as a hard link to its twin.

        One transaction, which writes nothing if the lease was lost.  Nothing is written of a link
        whose twin has gone meanwhile: a third cart may have inherited the bytes, which one that
        is linked to that cart shares with it, and no other.  If the twin's cart has lost files
        meanwhile, the twin may have been staged anew, which makes it another file.  The positions
        of such are given.
        """
        gone: set[int] = set()
        async with self._database.transaction() as transaction:
            await take_turn(transaction)
            await hold(transaction, cart_id, holder)
            for batch in batches(iter(linked), BATCH):
                gone |= await _record_linked(transaction, cart_id, batch)
        return gone


async def _record_linked(
    transaction: Transaction, cart_id: int, linked: Sequence[DuplicateFile]
) -> set[int]:
    at = {"in_cart": cart_id, "positions": [twin.position for twin in linked]}
    unstaged = {row.position for row in await transaction.rows(_UNSTAGED, at)}
    wanted = [twin for twin in linked if twin.position in unstaged]
    owners = await _owners(transaction, wanted)
    new = [twin for twin in wanted if twin.staged_id in owners]
    gone = {twin.position for twin in wanted} - {twin.position for twin in new}
    if not new:
        return gone
    await transaction.execute(
        _RECORD_LINKED,
        [
            {
                "in_cart": cart_id,
                "at": twin.position,
                "new_size": twin.size,
                "new_mtime": twin.mtime,
                "owner": owners[twin.staged_id],
            }
            for twin in new
        ],
    )
    await note_unsynced(transaction, cart_id, [twin.position for twin in new])
    size = sum(twin.size for twin in new)
    await transaction.execute(
        _COUNT, {"cart_id": cart_id, "more_files": len(new), "more_bytes": size}
    )
    return gone


async def _owners(transaction: Transaction, twins: Sequence[DuplicateFile]) -> dict[int, int]:
    """Of the files that are staged and in place still, by their ids, who owns their bytes."""
    files = await transaction.rows(_STAGED_ONES, {"ids": [twin.staged_id for twin in twins]})
    carts = list({row.cart_id for row in files})
    losses = dict(await transaction.rows(_CARTS_IN_PLACE, {"ids": carts}))
    known = {twin.staged_id: twin.losses for twin in twins}
    return {
        row.id: row.linked_to or row.id
        for row in files
        if losses.get(row.cart_id) == known[row.id] and row.status == FileStatus.STAGED.value
    }

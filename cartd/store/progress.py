"""What the holder of a cart records on its way from staging to ready or error.

Every method is one transaction and writes nothing if the lease was lost.  ``files_staged`` and
``bytes_staged`` of a cart always say how many of its files are ``staged``, and their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, func, literal, select, update

from cartd.model import CartStatus, FileStatus, TarFacts
from cartd.store.batching import BATCH, batched
from cartd.store.byte_ownership import end_sharing_between, lock_writers
from cartd.store.database import Database, Transaction
from cartd.store.durability import clear_dirty, mark_dirty
from cartd.store.invalidation import AT_POSITIONS, STAGED_AT_POSITIONS, count, invalidate
from cartd.store.leases import require_lease
from cartd.store.rows import FINISHED, date_of
from cartd.store.space import usage_in
from cartd.store.tables import cart, file

_STAGED = file.c.status == FileStatus.STAGED.value
_FILE = (file.c.cart_id == bindparam("in_cart"), file.c.position == bindparam("at"))
_UNSTAGED_AT_POSITIONS = select(file.c.position, file.c.size).where(*AT_POSITIONS, ~_STAGED)
_RECORD_STATE = (
    update(file)
    .where(*_FILE)
    .values(
        size=bindparam("new_size"),
        mtime=bindparam("new_mtime"),
        status=case((_STAGED, file.c.status), else_=FileStatus.STAGING.value),
        error="",
    )
)
_RECORD_STAGED = (
    update(file)
    .where(*_FILE)
    .values(
        status=FileStatus.STAGED.value,
        error="",
        hash_value=case((file.c.hash_value == "", bindparam("digest")), else_=file.c.hash_value),
    )
)
_LAST = select(func.max(file.c.position)).where(file.c.cart_id == bindparam("of_cart"))
_VOLUME_BYTES = select(cart.c.volume_bytes).where(cart.c.id == bindparam("cart_id"))
_RECORD_FILE_ERROR = (
    update(file).where(*_FILE).values(status=FileStatus.ERROR.value, error=bindparam("message"))
)
_TO_RETRY = (
    select(file.c.id)
    .where(
        file.c.cart_id == bindparam("in_cart"),
        file.c.status.not_in([FileStatus.STAGED.value, FileStatus.WAITING.value]),
    )
    .limit(bindparam("count"))
)
_RETRY_FILES = (
    update(file).where(file.c.id.in_(_TO_RETRY)).values(status=FileStatus.WAITING.value, error="")
)
_FINISHED = update(cart).where(cart.c.deleted_date.is_(None), cart.c.status.in_(FINISHED))
_RESTAGE = _FINISHED.where(cart.c.id == bindparam("cart_id"), cart.c.evicting.is_(None)).values(
    status=CartStatus.STAGING.value, error="", updated_date=bindparam("date")
)
_LOCK_FINISHED = (
    select(cart.c.id)
    .where(
        cart.c.id == bindparam("cart_id"),
        cart.c.deleted_date.is_(None),
        cart.c.status.in_(FINISHED),
        cart.c.evicting.is_(None),
    )
    .with_for_update()
)

_RECORD_UNRECOVERABLE = _FINISHED.where(
    cart.c.id == bindparam("cart_id"),
    cart.c.status == CartStatus.READY.value,
    cart.c.evicting.is_(None),
).values(status=CartStatus.ERROR.value, error=bindparam("message"), updated_date=bindparam("date"))


class Progress:
    """The part of the store that follows a cart while it is staged."""

    _database: Database

    async def record_states(
        self, cart_id: int, holder: str, states: Sequence[tuple[int, int, int]]
    ) -> None:
        """What the archive says of files: (position, bytes, Unix time of the last change)."""
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            await _record_states(transaction, cart_id, states)

    async def reserve(
        self,
        cart_id: int,
        holder: str,
        *,
        bytes_total: int,
        volume_bytes: int,
        limit: int | None = None,
    ) -> bool:
        """Promise the cart its bytes of the volume, once all its sizes are known.

        False, and nothing is written, if all carts together would then take more than ``limit``.
        """
        values = {"bytes_total": bytes_total, "volume_bytes": volume_bytes}
        async with self._database.transaction() as transaction:
            # Of those who promise at the same time, each sees what those before it have promised.
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            if limit is not None:
                taken, _ = await usage_in(transaction)
                [[so_far]] = await transaction.rows(_VOLUME_BYTES, {"cart_id": cart_id})
                if taken - so_far + volume_bytes > limit:
                    return False
            await _change(transaction, cart_id, values)
        return True

    async def record_staged(
        self, cart_id: int, holder: str, staged: Sequence[tuple[int, str]], *, now: float
    ) -> None:
        """Files that are on the volume: (position, digest); to say it twice changes nothing.

        A digest is kept only for a file whose manifest named none.
        """
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            for batch in batched(iter(staged), BATCH):
                await record_staged_in(transaction, cart_id, dict(batch))

    async def record_file_errors(
        self, cart_id: int, holder: str, failed: Sequence[tuple[int, str]]
    ) -> None:
        """Files that cannot be had, of a cart that is still staged: (position, why)."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            for position, message in failed:
                await _record_file_error(transaction, cart_id, position, message)

    async def record_error(
        self,
        cart_id: int,
        holder: str,
        message: str,
        *,
        position: int | None,
        file_error: str,
        now: float,
        volume_bytes: int | None = None,
        rest_unknown: bool = False,
    ) -> None:
        """The cart is in error, and the file at ``position``, if one, is why; the lease ends.

        Of the volume it takes from now on ``volume_bytes``, or else what was staged.  If nobody
        knows what else of it is there, ``rest_unknown``, it takes what it was promised at least.
        """
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            if position is not None:
                await _record_file_error(transaction, cart_id, position, file_error)
            values = _end(CartStatus.ERROR, message, now)
            taken: ColumnElement[int] = cart.c.bytes_staged
            if volume_bytes is not None:
                taken = literal(volume_bytes)
            if rest_unknown:
                taken = case((cart.c.volume_bytes > taken, cart.c.volume_bytes), else_=taken)
            await _change(transaction, cart_id, {**values, "volume_bytes": taken})

    async def begin_bundling(
        self, cart_id: int, holder: str, now: float, tar: TarFacts | None = None
    ) -> None:
        """Its files are there, and its tar is about to be written.

        ``tar`` is what will be written; none if the tar that was recorded is there already.
        """
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            values = {"status": CartStatus.BUNDLING.value, "updated_date": date_of(now)}
            if tar is not None:
                values |= _tar(tar)
            await _change(transaction, cart_id, values)

    async def record_bundled(self, cart_id: int, holder: str) -> None:
        """Its files are in its tar, their tree is gone: no other cart shares bytes with it.

        The tar has been synced when it was written.  Its files are recorded in many transactions,
        none of which is long; should the process end in between, it is to be said again.
        """
        [(last,)] = await self._database.rows(_LAST, {"of_cart": cart_id})
        for first in range(0, -1 if last is None else last + 1, BATCH):
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                await require_lease(transaction, cart_id, holder)
                await end_sharing_between(transaction, cart_id, first, first + BATCH - 1)
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            await clear_dirty(transaction, cart_id)

    async def record_ready(
        self,
        cart_id: int,
        holder: str,
        *,
        volume_bytes: int,
        now: float,
        tar: TarFacts | None = None,
    ) -> None:
        """The cart may be downloaded and takes ``volume_bytes`` of the volume; the lease ends.

        ``tar`` is none for one whose tar is on the volume: it was recorded before it was written.
        """
        values = _end(CartStatus.READY, "", now) | (_tar(tar) if tar is not None else {})
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            await _change(transaction, cart_id, {**values, "volume_bytes": volume_bytes})

    async def record_tar(self, cart_id: int, tar: TarFacts) -> None:
        """What the tar of a ready cart is; its time stays if it is so already."""
        async with self._database.transaction() as transaction:
            await _change(transaction, cart_id, _tar(tar))

    async def restage(self, cart_id: int, *, lost: Sequence[int] | None, now: float) -> bool:
        """Put a ready cart, or one in error, back to staging; False if it is neither.

        Nor may it be on its way out: of a cart that is being evicted, files are missing.

        The files at the positions ``lost``, and those that never were staged, wait again.  All but
        the last of many do so in transactions before that one, each as short as the others.
        """
        gone = list(lost or ())
        first = max(0, (len(gone) - 1) // BATCH * BATCH)
        for batch in batched(iter(gone[:first]), BATCH):
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                if not await transaction.rows(_LOCK_FINISHED, {"cart_id": cart_id}):
                    return False
                await invalidate(transaction, cart_id, batch)
        if not await self._retry_files(cart_id):
            return False
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            values = {"cart_id": cart_id, "date": date_of(now)}
            if not await transaction.execute(_RESTAGE, values):
                return False
            if gone:
                await invalidate(transaction, cart_id, gone[first:])
        return True

    async def record_unrecoverable(self, cart_id: int, message: str, *, now: float) -> bool:
        """A ready cart that does not stay whole is in error; false if it is not ready any more."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            values = {"cart_id": cart_id, "date": date_of(now), "message": message}
            return bool(await transaction.execute(_RECORD_UNRECOVERABLE, values))

    async def _retry_files(self, cart_id: int) -> bool:
        """Let files wait again that never were staged; False if the cart is not finished."""
        while True:
            async with self._database.transaction() as transaction:
                if not await transaction.rows(_LOCK_FINISHED, {"cart_id": cart_id}):
                    return False
                retried = {"in_cart": cart_id, "count": BATCH}
                if await transaction.execute(_RETRY_FILES, retried) < BATCH:
                    return True

    async def invalidate_files(self, cart_id: int, holder: str, positions: Sequence[int]) -> None:
        """Files of a cart in staging that are not on the volume, whatever was recorded of them.

        A transaction for each batch: whoever changes several carts need not wait for all.
        """
        for batch in batched(iter(positions), BATCH):
            async with self._database.transaction() as transaction:
                await lock_writers(transaction)
                await require_lease(transaction, cart_id, holder)
                await invalidate(transaction, cart_id, batch)

    async def record_measured(
        self,
        cart_id: int,
        sizes: Sequence[tuple[int, int, int]],
        *,
        bytes_total: int | None,
        volume_bytes: int,
    ) -> None:
        """What was found on the volume of a cart of Pacifica's, as of ``record_states``.

        ``bytes_total`` is none for a cart that lacks files.  Nothing is recorded of one that went
        back to staging meanwhile.
        """
        async with self._database.transaction() as transaction:
            values = {"bytes_total": bytes_total, "volume_bytes": volume_bytes}
            measured = _FINISHED.where(cart.c.id == cart_id).values(**values)
            if await transaction.execute(measured):
                await _record_states(transaction, cart_id, sizes)


def _end(status: CartStatus, error: str, now: float) -> dict[str, Any]:
    return {
        "status": status.value,
        "error": error,
        "updated_date": date_of(now),
        "lease_holder": None,
        "lease_until": None,
        "waits_since": None,
        "waits_for": None,
        "tape_since": None,
        "tape_files": None,
    }


async def _change(transaction: Transaction, cart_id: int, values: dict[str, Any]) -> None:
    await transaction.execute(update(cart).where(cart.c.id == cart_id).values(**values))


def _tar(tar: TarFacts) -> dict[str, Any]:
    """Its time stays with the same tar, as clients may have it in part."""
    same = and_(cart.c.tar_layout == tar.layout, cart.c.tar_digest == tar.digest)
    return {
        "tar_date": case((same, cart.c.tar_date), else_=date_of(tar.since)),
        "tar_layout": tar.layout,
        "tar_digest": tar.digest,
        "tar_lengths": tar.lengths,
    }


async def _record_states(
    transaction: Transaction, cart_id: int, states: Sequence[tuple[int, int, int]]
) -> None:
    for batch in batched(iter(states), BATCH):
        sizes = {position: size for position, size, _ in batch}
        staged = await transaction.rows(
            STAGED_AT_POSITIONS, {"in_cart": cart_id, "positions": list(sizes)}
        )
        await transaction.execute(
            _RECORD_STATE,
            [
                {"in_cart": cart_id, "at": position, "new_size": size, "new_mtime": mtime}
                for position, size, mtime in batch
            ],
        )
        grown = sum(sizes[row.position] - (row.size or 0) for row in staged)
        await count(transaction, cart_id, size=grown)


async def record_staged_in(
    transaction: Transaction, cart_id: int, digests: Mapping[int, str]
) -> None:
    """As :meth:`Progress.record_staged`, of a cart that is held: digests by position."""
    new = await transaction.rows(
        _UNSTAGED_AT_POSITIONS, {"in_cart": cart_id, "positions": list(digests)}
    )
    if not new:
        return
    await transaction.execute(
        _RECORD_STAGED,
        [{"in_cart": cart_id, "at": row.position, "digest": digests[row.position]} for row in new],
    )
    await mark_dirty(transaction, cart_id, [row.position for row in new])
    await count(transaction, cart_id, files=len(new), size=sum(row.size or 0 for row in new))


async def _record_file_error(
    transaction: Transaction, cart_id: int, position: int, message: str
) -> None:
    await invalidate(transaction, cart_id, [position])
    await transaction.execute(
        _RECORD_FILE_ERROR, {"in_cart": cart_id, "at": position, "message": message}
    )

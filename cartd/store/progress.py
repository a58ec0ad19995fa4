"""Changes of a cart from staging to ready or error, and back to staging.

Every method is one transaction, unless it says otherwise; one that takes the holder of the lease
writes nothing if the lease was lost.
``files_staged`` and ``bytes_staged`` of a cart always match its files of status ``staged``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    select,
    update,
)

from cartd.errors import Problem
from cartd.model import CartStatus, FileFailure, FileStatus, SecondHash, TarFacts
from cartd.store.database import Database, Transaction, lock_writers
from cartd.store.durability import (
    AT_POSITIONS,
    STAGED_AT_POSITIONS,
    clear_dirty,
    count,
    invalidate,
    mark_dirty,
)
from cartd.store.leases import require_lease
from cartd.store.space import end_sharing_between, usage_in
from cartd.store.tables import BATCH, FINISHED, batched, cart, date_of, file

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
        problem=None,
    )
)
_RECORD_STAGED = (
    update(file)
    .where(*_FILE)
    .values(
        status=FileStatus.STAGED.value,
        error="",
        problem=None,
        hash_value=case((file.c.hash_value == "", bindparam("digest")), else_=file.c.hash_value),
    )
)
_RECORD_STAGED_TWICE_HASHED = _RECORD_STAGED.values(
    also_hash_type=bindparam("also_type"), also_hash_value=bindparam("also_sum")
)
_LAST = select(func.max(file.c.position).label("position")).where(
    file.c.cart_id == bindparam("of_cart")
)
_VOLUME_BYTES = select(cart.c.volume_bytes).where(cart.c.id == bindparam("cart_id"))
# As a literal, so that the partial index on it is used.
_FAILED = (file.c.cart_id == bindparam("of_cart"), file.c.status == literal_column("'error'"))
_FAILED_POSITIONS = select(file.c.position).where(*_FAILED)
_COUNT_FAILED = (
    update(cart)
    .where(cart.c.id == bindparam("of_cart"))
    .values(files_failed=select(func.count()).where(*_FAILED).scalar_subquery())
)
_RECORD_PACE = (
    update(cart)
    .where(
        cart.c.id == bindparam("cart_id"),
        cart.c.lease_holder == bindparam("holder"),
        cart.c.deleted_date.is_(None),
    )
    .values(pace=bindparam("new_pace"))
)
_RECORD_FILE_ERROR = (
    update(file)
    .where(*_FILE)
    .values(
        status=FileStatus.ERROR.value, error=bindparam("message"), problem=bindparam("new_problem")
    )
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
    update(file)
    .where(file.c.id.in_(_TO_RETRY))
    .values(status=FileStatus.WAITING.value, error="", problem=None)
)
_RESET_FAILED = (
    update(file).where(*_FAILED).values(status=FileStatus.WAITING.value, error="", problem=None)
)
_NONE_FAILED = update(cart).where(cart.c.id == bindparam("of_cart")).values(files_failed=0)
_UPDATE_HELD = update(cart).where(
    cart.c.lease_holder == bindparam("holder"), cart.c.deleted_date.is_(None)
)
_BEGIN_WAITING = _UPDATE_HELD.where(cart.c.status == CartStatus.STAGING.value).values(
    waits_since=func.coalesce(cart.c.waits_since, bindparam("since")), waits_for=bindparam("cause")
)
_END_WAITING = _UPDATE_HELD.where(cart.c.waits_since.is_not(None)).values(
    waits_since=None, waits_for=None
)
_ONE_HELD = _UPDATE_HELD.where(cart.c.id == bindparam("one_cart"))
_ON_TAPE = _ONE_HELD.values(
    tape_since=func.coalesce(cart.c.tape_since, bindparam("since")), tape_files=bindparam("files")
)
_OFF_TAPE = _ONE_HELD.values(tape_since=None, tape_files=None)
_FINISHED = update(cart).where(cart.c.deleted_date.is_(None), cart.c.status.in_(FINISHED))
_RESTAGE = _FINISHED.where(cart.c.id == bindparam("cart_id"), cart.c.evicting.is_(None)).values(
    status=CartStatus.STAGING.value,
    error="",
    problem=None,
    updated_date=bindparam("date"),
    started_date=None,
    files_failed=0,
)
_LOCK_FINISHED = (
    select(cart.c.status)
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
).values(
    status=CartStatus.ERROR.value,
    error=bindparam("message"),
    problem=Problem.VOLUME_UNAVAILABLE.value,
    updated_date=bindparam("date"),
)


class Progress:
    """Statements for a cart that is staged."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_states(
        self, cart_id: int, holder: str, states: Sequence[tuple[int, int, int]]
    ) -> None:
        """Record files as the archive describes them: (position, bytes, mtime as Unix time)."""
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
        """Reserve the cart's space on the volume, once all its sizes are known.

        Returns False and writes nothing if all carts together would exceed ``limit``.
        """
        values = {"bytes_total": bytes_total, "volume_bytes": volume_bytes}
        async with self._database.transaction() as transaction:
            # Concurrent reservations are counted one after the other.
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            if limit is not None:
                taken, _ = await usage_in(transaction)
                [own] = await transaction.rows(_VOLUME_BYTES, {"cart_id": cart_id})
                if taken - own.volume_bytes + volume_bytes > limit:
                    return False
            await _change(transaction, cart_id, values)
        return True

    async def record_staged(
        self,
        cart_id: int,
        holder: str,
        staged: Sequence[tuple[int, str]],
        *,
        now: float,
        second: Mapping[int, SecondHash] | None = None,
    ) -> None:
        """Record files on the volume: (position, digest); repeating it changes nothing.

        A digest is stored only for a file whose manifest has none.  ``second`` has the second
        hashes of some of them, by position.
        """
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            for batch in batched(iter(staged), BATCH):
                await record_staged_in(transaction, cart_id, dict(batch), second or {})

    async def record_file_errors(
        self, cart_id: int, holder: str, failed: Sequence[FileFailure]
    ) -> None:
        """Record files that cannot be fetched, while the cart is staged."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            for one in failed:
                await _record_file_error(transaction, cart_id, one)
            await transaction.execute(_COUNT_FAILED, {"of_cart": cart_id})

    async def retry_failed(self, cart_id: int, holder: str) -> None:
        """Set the failed files of a cart in staging to waiting: they are tried again."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            await transaction.execute(_RESET_FAILED, {"of_cart": cart_id})
            await transaction.execute(_NONE_FAILED, {"of_cart": cart_id})

    async def recount_failed(self, cart_id: int, holder: str) -> list[int]:
        """Correct the number of failed files after some were linked; return their positions."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            await transaction.execute(_COUNT_FAILED, {"of_cart": cart_id})
            rows = await transaction.rows(_FAILED_POSITIONS, {"of_cart": cart_id})
        return [row.position for row in rows]

    async def record_paces(self, holder: str, paces: Mapping[int, str | None]) -> None:
        """Record the pace of carts that ``holder`` stages, as JSON by their ids.

        Carts that it no longer holds are ignored.
        """
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(
                _RECORD_PACE,
                [
                    {"cart_id": cart_id, "holder": holder, "new_pace": pace}
                    for cart_id, pace in paces.items()
                ],
            )

    async def record_error(
        self,
        cart_id: int,
        holder: str,
        message: str,
        *,
        position: int | None,
        file_error: str,
        now: float,
        problem: Problem | None = None,
        volume_bytes: int | None = None,
        rest_unknown: bool = False,
    ) -> None:
        """Set the cart, and the file at ``position`` if given, to error; the lease ends.

        Its space becomes ``volume_bytes``, by default the bytes staged.  With ``rest_unknown``,
        other files of it may be on the volume, so it keeps at least its reservation.
        """
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await require_lease(transaction, cart_id, holder)
            if position is not None:
                failed = FileFailure(position, file_error, problem)
                await _record_file_error(transaction, cart_id, failed)
            await transaction.execute(_COUNT_FAILED, {"of_cart": cart_id})
            values = _end(CartStatus.ERROR, message, now, problem)
            taken: ColumnElement[int] = cart.c.bytes_staged
            if volume_bytes is not None:
                taken = literal(volume_bytes)
            if rest_unknown:
                taken = case((cart.c.volume_bytes > taken, cart.c.volume_bytes), else_=taken)
            await _change(transaction, cart_id, {**values, "volume_bytes": taken})

    async def begin_waiting(self, holder: str, since: float, cause: str) -> None:
        """Mark all carts held by ``holder`` as waiting; those that wait already keep their time."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            values = {"holder": holder, "since": date_of(since), "cause": cause}
            await transaction.execute(_BEGIN_WAITING, values)

    async def end_waiting(self, holder: str) -> None:
        """Mark all carts held by ``holder`` as no longer waiting."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            await transaction.execute(_END_WAITING, {"holder": holder})

    async def record_tape(self, cart_id: int, holder: str, files: int, *, now: float) -> None:
        """Record how many files of the cart are on tape; the first time recorded is kept.

        Ignored if another process holds the cart.
        """
        values: dict[str, Any] = {"holder": holder, "one_cart": cart_id}
        statement = _OFF_TAPE
        if files:
            statement = _ON_TAPE
            values |= {"since": date_of(now), "files": files}
        async with self._database.transaction() as transaction:
            await transaction.execute(statement, values)

    async def begin_bundling(
        self,
        cart_id: int,
        holder: str,
        now: float,
        tar: TarFacts | None = None,
        bag: str | None = None,
    ) -> None:
        """Set the cart to bundling: its files are staged, and its tar is about to be written.

        ``tar`` and, if that is written, ``bag`` describe the tar to be written; None if the
        recorded one exists already.
        """
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            values = {"status": CartStatus.BUNDLING.value, "updated_date": date_of(now)}
            if tar is not None:
                values |= _tar(tar)
            if bag is not None:
                values["bag"] = bag
            await _change(transaction, cart_id, values)

    async def record_bundled(self, cart_id: int, holder: str) -> None:
        """Record that the cart's files are in its tar, and its tree is removed.

        No other cart shares bytes with it afterwards.  The tar was synced when it was written.  The
        files are recorded in many short transactions; if the process dies in between, repeat it.
        """
        [last] = await self._database.rows(_LAST, {"of_cart": cart_id})
        for first in range(0, -1 if last.position is None else last.position + 1, BATCH):
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
        may_lack: bool = False,
    ) -> None:
        """Set the cart to ready, with ``volume_bytes`` on the volume; the lease ends.

        ``tar`` is None if the tar is on the volume: it was recorded before it was written.
        ``may_lack``: it may be partial.  The files that have failed stay so, and ``bytes_total``
        becomes the sum of the others.
        """
        values = _end(CartStatus.READY, "", now) | {"volume_bytes": volume_bytes}
        values |= {"bytes_total": cart.c.bytes_staged} if may_lack else {"files_failed": 0}
        if tar is not None:
            values |= _tar(tar)
        async with self._database.transaction() as transaction:
            await require_lease(transaction, cart_id, holder)
            await _change(transaction, cart_id, values)

    async def record_tar(self, cart_id: int, tar: TarFacts, *, seen: float | None = None) -> None:
        """Record the tar of a ready cart; an identical tar keeps its date.

        Ignored if the cart has changed since the Unix time ``seen``, its ``updated``.
        """
        statement = update(cart).where(cart.c.id == cart_id)
        if seen is not None:
            statement = statement.where(
                cart.c.status == CartStatus.READY.value, cart.c.updated_date == date_of(seen)
            )
        async with self._database.transaction() as transaction:
            await transaction.execute(statement.values(**_tar(tar)))

    async def record_bag(self, cart_id: int, bag: str) -> None:
        """Record the facts of the bag of a ready cart, as ``BagFacts`` dumps them."""
        async with self._database.transaction() as transaction:
            await _change(transaction, cart_id, {"bag": bag})

    async def restage(self, cart_id: int, *, lost: Sequence[int] | None, now: float) -> bool:
        """Set a ready or failed cart back to staging; return False if it is neither.

        A cart that is being evicted is not restaged: some of its files are removed already.

        The files at the positions ``lost``, and all unstaged files, are set to waiting.  If there
        are many, all but the last batch are invalidated in transactions of their own before.  The
        failed files of a ready cart, a partial one, are reset in the last transaction: while it is
        ready, they are known.
        """
        invalid = list(lost or ())
        first = max(0, (len(invalid) - 1) // BATCH * BATCH)
        for batch in batched(iter(invalid[:first]), BATCH):
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
            await transaction.execute(_RESET_FAILED, {"of_cart": cart_id})
            if invalid:
                await invalidate(transaction, cart_id, invalid[first:])
        return True

    async def record_unrecoverable(self, cart_id: int, message: str, *, now: float) -> bool:
        """Set a ready cart that keeps getting damaged to error; False if it is not ready."""
        async with self._database.transaction() as transaction:
            await lock_writers(transaction)
            values = {"cart_id": cart_id, "date": date_of(now), "message": message}
            return bool(await transaction.execute(_RECORD_UNRECOVERABLE, values))

    async def _retry_files(self, cart_id: int) -> bool:
        """Set unstaged files to waiting, in batches; False if the cart is not finished.

        Not those of a ready cart.
        """
        while True:
            async with self._database.transaction() as transaction:
                rows = await transaction.rows(_LOCK_FINISHED, {"cart_id": cart_id})
                if not rows:
                    return False
                if rows[0].status == CartStatus.READY.value:
                    return True
                retried = {"in_cart": cart_id, "count": BATCH}
                if await transaction.execute(_RETRY_FILES, retried) < BATCH:
                    return True

    async def invalidate_files(self, cart_id: int, holder: str, positions: Sequence[int]) -> None:
        """Invalidate files of a cart in staging that are not on the volume.

        One transaction per batch, so that other writers of several carts need not wait for all.
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
        """Record what was found on the volume of one of Pacifica's carts.

        ``sizes`` is as for ``record_states``; ``bytes_total`` is None for a cart that lacks files.
        Ignored if the cart went back to staging meanwhile.
        """
        async with self._database.transaction() as transaction:
            values = {"bytes_total": bytes_total, "volume_bytes": volume_bytes}
            measured = _FINISHED.where(cart.c.id == cart_id).values(**values)
            if await transaction.execute(measured):
                await _record_states(transaction, cart_id, sizes)
                await transaction.execute(_COUNT_FAILED, {"of_cart": cart_id})


def _end(
    status: CartStatus, error: str, now: float, problem: Problem | None = None
) -> dict[str, Any]:
    return {
        "status": status.value,
        "error": error,
        "problem": problem,
        "updated_date": date_of(now),
        "lease_holder": None,
        "lease_until": None,
        "pace": None,
        "waits_since": None,
        "waits_for": None,
        "tape_since": None,
        "tape_files": None,
    }


async def _change(transaction: Transaction, cart_id: int, values: dict[str, Any]) -> None:
    await transaction.execute(update(cart).where(cart.c.id == cart_id).values(**values))


def _tar(tar: TarFacts) -> dict[str, Any]:
    """An identical tar keeps its date: clients may have downloaded a part of it."""
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
    transaction: Transaction,
    cart_id: int,
    digests: Mapping[int, str],
    second: Mapping[int, SecondHash],
) -> None:
    """As :meth:`Progress.record_staged`, within a transaction that has the lease."""
    new = await transaction.rows(
        _UNSTAGED_AT_POSITIONS, {"in_cart": cart_id, "positions": list(digests)}
    )
    if not new:
        return
    once: list[dict[str, Any]] = []
    twice: list[dict[str, Any]] = []
    for row in new:
        values = {"in_cart": cart_id, "at": row.position, "digest": digests[row.position]}
        if row.position in second:
            also = second[row.position]
            twice.append({**values, "also_type": also.hash_type, "also_sum": also.hash_sum})
        else:
            once.append(values)
    for statement, rows in ((_RECORD_STAGED, once), (_RECORD_STAGED_TWICE_HASHED, twice)):
        if rows:
            await transaction.execute(statement, rows)
    await mark_dirty(transaction, cart_id, [row.position for row in new])
    await count(transaction, cart_id, files=len(new), size=sum(row.size or 0 for row in new))


async def _record_file_error(transaction: Transaction, cart_id: int, failed: FileFailure) -> None:
    await invalidate(transaction, cart_id, [failed.position])
    await transaction.execute(
        _RECORD_FILE_ERROR,
        {
            "in_cart": cart_id,
            "at": failed.position,
            "message": failed.error,
            "new_problem": failed.problem,
        },
    )

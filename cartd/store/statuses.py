"""What clients see of carts and their files: details, versions, failed files, lists, labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from msgspec.json import Decoder
from sqlalchemy import (
    Select,
    bindparam,
    func,
    literal_column,
    select,
    union_all,
)

from cartd.model import Cart, CartDetails, CartFile, CartStatus, FileStatus, HashTypes
from cartd.store.database import Database
from cartd.store.labels import replace_labels
from cartd.store.tables import (
    BATCH,
    CARTS,
    FILES,
    UNFINISHED,
    batched,
    cart,
    cart_label,
    cart_of,
    file,
    file_of,
    in_field_order,
    time_of,
)

_OF_DETAILS = in_field_order(
    CartDetails,
    {
        "name": cart.c.name,
        "labels": cart.c.labels,
        "started": cart.c.started_date,
        "files_linked": cart.c.files_linked,
        "size_linked": cart.c.size_linked,
        "pace": cart.c.pace,
        "version": cart.c.version,
        "lease_until": cart.c.lease_until,
    },
)
_LABELS, _STARTED = (
    [field.name for field in fields(CartDetails)].index(name) for name in ("labels", "started")
)
_DETAILS = len(CARTS.selected_columns)
"""Index of the first column of the details in a row of ``_BY_IDS``."""
_BY_IDS = CARTS.add_columns(*_OF_DETAILS).where(cart.c.id.in_(bindparam("ids", expanding=True)))
_VERSIONS = select(cart.c.id, cart.c.version).where(cart.c.id.in_(bindparam("ids", expanding=True)))
_PAGE = (
    FILES.where(file.c.cart_id == bindparam("cart_id"), file.c.position > bindparam("after"))
    .order_by(file.c.position)
    .limit(bindparam("count"))
)
_PAGES = {
    # As a literal, so that the partial indexes on it are used.
    status: _PAGE.where(file.c.status == literal_column(f"'{status.value}'"))
    for status in FileStatus
}
_IS_KNOWN = (file.c.hash_value != "").label("is_known")
_HASH_TYPES = (
    select(
        *in_field_order(
            HashTypes,
            {
                "files": func.count(),
                "hash_type": file.c.hash_type,
                "is_known": _IS_KNOWN,
                "also_hash_type": file.c.also_hash_type,
            },
        )
    )
    .where(
        file.c.cart_id == bindparam("cart_id"),
        file.c.status == literal_column(f"'{FileStatus.STAGED.value}'"),
    )
    .group_by(file.c.hash_type, _IS_KNOWN, file.c.also_hash_type)
)
_REMAINING = select(
    cart.c.id,
    cart.c.owner,
    (cart.c.files_total - cart.c.files_staged - cart.c.files_failed).label("files"),
    (cart.c.bytes_total - cart.c.bytes_staged).label("size"),
    func.coalesce(cart.c.tape_files, 0).label("on_tape"),
).where(cart.c.deleted_date.is_(None), cart.c.status.in_(UNFINISHED))
_TEXTS = Decoder(tuple[str, ...])
_NEWEST = 2**63 - 1
"""Greater than any id."""
# As a literal, so that the partial index on it is used.
_HAS_FAILED = cart.c.files_failed > literal_column("0")


def _listed(
    statuses: Collection[CartStatus], *, owned: bool, labelled: bool, partial: bool = False
) -> Select[Any]:
    """Return a query for the ids of undeleted carts, newest first.

    The newest of each status are read in the order of an index, however many carts there are.
    """
    if labelled:
        return _with_label(statuses, owned=owned, partial=partial)
    parts = []
    for status in statuses:
        # As a literal: the plan must not depend on a parameter.
        part = select(cart.c.id).where(
            cart.c.deleted_date.is_(None),
            cart.c.status == literal_column(f"'{status.value}'"),
            cart.c.id < bindparam("before"),
        )
        if owned:
            part = part.where(cart.c.owner == bindparam("owner"))
        if partial:
            part = part.where(_HAS_FAILED)
        newest = part.order_by(cart.c.id.desc()).limit(bindparam("count")).subquery()
        parts.append(select(newest.c.id))
    every = union_all(*parts).subquery()
    return select(every.c.id).order_by(every.c.id.desc()).limit(bindparam("count"))


def _with_label(statuses: Collection[CartStatus], *, owned: bool, partial: bool) -> Select[Any]:
    """As :func:`_listed`, for the carts with a label: its rows are read in their order."""
    query = (
        select(cart_label.c.cart_id.label("id"))
        .join(cart, cart.c.id == cart_label.c.cart_id)
        .where(
            cart_label.c.label == bindparam("label"),
            cart_label.c.cart_id < bindparam("before"),
            cart.c.status.in_([literal_column(f"'{status.value}'") for status in statuses]),
        )
        .order_by(cart_label.c.cart_id.desc())
        .limit(bindparam("count"))
    )
    if partial:
        query = query.where(_HAS_FAILED)
    return query.where(cart_label.c.owner == bindparam("owner")) if owned else query


_LIVING: tuple[CartStatus, ...] = tuple(
    status for status in CartStatus if status is not CartStatus.DELETED
)
_LISTS: dict[tuple[tuple[CartStatus, ...], bool, bool], Select[Any]] = {
    (statuses, owned, labelled): _listed(statuses, owned=owned, labelled=labelled)
    for statuses in (_LIVING, *((status,) for status in _LIVING))
    for owned in (False, True)
    for labelled in (False, True)
}
_PARTIAL: dict[tuple[bool, bool], Select[Any]] = {
    (owned, labelled): _listed([CartStatus.READY], owned=owned, labelled=labelled, partial=True)
    for owned in (False, True)
    for labelled in (False, True)
}


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left to stage of an unfinished cart."""

    cart_id: int
    owner: str | None
    files: int
    size: int | None
    """Bytes; none until all sizes are known."""
    on_tape: int
    """How many of these files were on tape when last recorded."""


class Statuses:
    """Queries for status documents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def details(self, cart_ids: Sequence[int]) -> dict[int, tuple[Cart, CartDetails]]:
        """Return the carts of these ids, deleted or not, with their details; unknown ids lack."""
        found: dict[int, tuple[Cart, CartDetails]] = {}
        for batch in batched(iter(cart_ids), BATCH):
            for row in await self._database.rows(_BY_IDS, {"ids": batch}):
                one = cart_of(row[:_DETAILS])
                found[one.id] = (one, _details_of(row[_DETAILS:]))
        return found

    async def versions(self, cart_ids: Sequence[int]) -> dict[int, int]:
        """Return the versions of the carts of these ids; unknown ids lack."""
        found: dict[int, int] = {}
        for batch in batched(iter(cart_ids), BATCH):
            rows = await self._database.rows(_VERSIONS, {"ids": batch})
            found.update((row.id, row.version) for row in rows)
        return found

    async def files(
        self, cart_id: int, *, status: FileStatus | None = None, after: int = -1, limit: int
    ) -> list[CartFile]:
        """Return at most ``limit`` files after the position ``after``, in manifest order."""
        query = _PAGE if status is None else _PAGES[status]
        page = {"cart_id": cart_id, "after": after, "count": limit}
        return [file_of(row) for row in await self._database.rows(query, page)]

    async def hash_types(self, cart_id: int) -> list[HashTypes]:
        """Return which hashes the staged files of a cart have, and how many files have them."""
        rows = await self._database.rows(_HASH_TYPES, {"cart_id": cart_id})
        return [HashTypes(*row) for row in rows]

    async def newest(
        self,
        *,
        owner: str | None = None,
        status: CartStatus | None = None,
        partial: bool = False,
        label: str | None = None,
        before: int | None = None,
        limit: int,
    ) -> list[int]:
        """Return the ids of at most ``limit`` undeleted carts, newest first.

        Only those of ``owner``, with this status and label, whose ids are below ``before``, as far
        as these are given; with ``partial`` only partial carts.
        """
        wanted: tuple[CartStatus, ...] = _LIVING if status is None else (status,)
        values: dict[str, Any] = {"before": _NEWEST if before is None else before, "count": limit}
        if owner is not None:
            values["owner"] = owner
        if label is not None:
            values["label"] = label
        parts = owner is not None, label is not None
        query = _PARTIAL[parts] if partial else _LISTS[wanted, *parts]
        return [row.id for row in await self._database.rows(query, values)]

    async def remaining(self) -> list[Remaining]:
        """Return what is left to stage of every unfinished cart, of all processes."""
        return [Remaining(*row) for row in await self._database.rows(_REMAINING)]

    async def set_labels(self, cart_id: int, labels: Sequence[str]) -> bool:
        """Replace the labels of the cart; return False if it has been deleted."""
        async with self._database.transaction() as transaction:
            return await replace_labels(transaction, cart_id, labels)


def _details_of(row: Any) -> CartDetails:
    values = [*row]
    values[_LABELS] = _TEXTS.decode(values[_LABELS])
    if values[_STARTED] is not None:
        values[_STARTED] = time_of(values[_STARTED])
    return CartDetails(*values)
